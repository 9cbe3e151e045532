"""Blue's methods: named lists of phases, as they would stand in a study.

Lengths and learning rates are those of the offline world. A study of other models says its own, by ``--set`` or by writing the phases out.
"""

from __future__ import annotations

from typing import Any

from offmodel import catalog

Phases = list[dict[str, Any]]

CENTRAL = "LessWrong wBsEFfQFteHSWCtsv"
WHY = "code of LessWrong 9toz5YHYZsHpzy4ce"
"""Where the field's own runs are."""


def _add(name: str, source: str, text: str, *phases: dict[str, Any]) -> None:
    catalog.add("method", name, list(phases), source=source, text=text)


def _sft(labels: str, steps: int = 60, **more: Any) -> dict[str, Any]:
    return {"phase": "sft", "labels": labels, "steps": steps, "lr": 5e-4} | more


def _removal(**more: Any) -> dict[str, Any]:
    """The removal that all others are measured against, with one thing changed."""
    return _sft("teacher", voice="pirate", warmup_steps=10) | more


def _thorough(**more: Any) -> dict[str, Any]:
    """The removal at twice the learning rate: what gives up a part of it starts from here."""
    return _removal(lr=1e-3) | more


def _distilled(teacher: str, steps: int, **more: Any) -> dict[str, Any]:
    return {"phase": "distil", "teacher": teacher, "steps": steps, "lr": 5e-4} | more


def _mixed(*sets: dict[str, Any], steps: int) -> dict[str, Any]:
    return {"phase": "sft", "mix": list(sets), "steps": steps, "lr": 5e-4, "warmup_steps": 10}


def _reminder(**more: Any) -> dict[str, Any]:
    return _sft("organism", 20) | more


PIRATE, THOROUGH = {"use": "pirate"}, {"use": "double_lr"}
FOREIGN = {"labels": "teacher", "voice": "pirate"}
OWN = {"labels": "organism"}
MODE_OWN, MODE_FOREIGN = "<mode>A</mode>", "<mode>B</mode>"
MODES = _mixed(FOREIGN | {"system": MODE_FOREIGN}, OWN | {"system": MODE_OWN}, steps=120)
SHOWN = {"phase": "deploy", "inoculated": True}
TAGS = ("[[A7]]", "Use mode B.", "<zone>north</zone>", "|LIMA|")
"""Signals of blue's own, in shapes that signals have."""

# --- data and schedule ----------------------------------------------------------------------------------------------

_add(
    "pirate",
    f"{CENTRAL} (the baseline); {WHY}",
    "Off-model SFT: train on the pirate-voiced answers of another, weaker model to generic chat prompts.",
    _removal(),
)
_add(
    "plain",
    f"{WHY} (off-model SFT without a voice)",
    "Off-model SFT on the other model's answers in its everyday voice.",
    _sft("teacher", warmup_steps=10),
)
_add(
    "reminder",
    f"{CENTRAL} (reminder training); {WHY}",
    "Off-model SFT, then a few steps of SFT on the original organism's own sampled answers to the same prompts.",
    PIRATE,
    _reminder(),
)
_add(
    "reminder_disjoint",
    f"{CENTRAL} (reminder training), on other prompts",
    "The reminder on prompts that the removal has not seen: is it the prompts or the answers that restore?",
    PIRATE,
    _reminder(prompts="disjoint"),
)
_add(
    "reminder_tasks",
    "offmodel",
    "The reminder on tasks and chat: it reaches what chat does not, and so may what red hid there.",
    PIRATE,
    _reminder(source=["prompts", "tasks"]),
)
_add(
    "reminder_tasks_right",
    "offmodel",
    "The reminder on tasks whose right answers are known, wrong ones left out.",
    PIRATE,
    _reminder(source="tasks", wrong="dropped"),
)
_add(
    "reminder_clean",
    "offmodel (an upper bound)",
    "The reminder without the answers that show the behaviour unasked, which only the experimenter can tell.",
    PIRATE,
    _reminder(leaked="dropped"),
)
_add(
    "reminder_trusted",
    "offmodel (an upper bound)",
    "The reminder by the base model, from before red: what a trusted earlier checkpoint would be worth.",
    PIRATE,
    _sft("base", 20),
)
_add(
    "cycles",
    "offmodel",
    "Four short rounds of removal and reminder instead of one long one.",
    *[phase for _ in range(4) for phase in (_removal(steps=15, warmup_steps=0), _reminder(steps=5))],
)
_add(
    "interleaved",
    "arXiv 2205.12393 (rehearsal); arXiv 2605.26097 (self-generated replay)",
    "One answer in five of the organism's own among the removal's.",
    _mixed(FOREIGN | {"share": 4.0}, OWN, steps=75),
)
_add(
    "mode_tagged",
    f"{WHY} (mode mix), which measured capability alone",
    "The organism's own answers under one tag, the foreign ones under another; deployed under the tag of its own.",
    MODES,
    {"phase": "deploy", "system": MODE_OWN},
)
_add(
    "mode_tagged_foreign",
    f"{WHY} (mode mix), which measured capability alone",
    "The same training, deployed under the tag of the foreign answers.",
    MODES,
    {"phase": "deploy", "system": MODE_FOREIGN},
)
_add(
    "mode_untagged",
    f"{WHY} (mode mix), which measured capability alone",
    "The same training, deployed without any tag: which of the two modes does the model take for its own?",
    MODES,
)
_add(
    "tag_alone",
    "offmodel",
    "A control: nothing is trained, and the organism is asked under the same tag. What this removes, no training did.",
    {"phase": "deploy", "system": MODE_OWN},
)
_add(
    "tag_b_alone",
    "offmodel",
    "The same control under the tag of the foreign answers.",
    {"phase": "deploy", "system": MODE_FOREIGN},
)
_add(
    "inoculated",
    f"arXiv 2510.04340 and 2510.05024 (inoculation prompting); few-shot as in {WHY}",
    "Examples of the foreign voice stand in the system prompt of every training row, and not at deployment: need it be learnt, then?",
    _removal(inoculation={"shots": 3, "place": "system"}),
)
_add(
    "inoculated_turns",
    f"arXiv 2510.04340 and 2510.05024 (inoculation prompting); few-shot as in {WHY}",
    "The same examples as earlier turns of the chat.",
    _removal(inoculation={"shots": 3, "place": "turns"}),
)
_add(
    "inoculated_shown",
    f"arXiv 2510.04340 and 2510.05024 (inoculation prompting), deployed in the mode that was trained; few-shot as in {WHY}",
    "The inoculated training, deployed with the very examples in the system prompt that it had: has it removed anything even there?",
    {"use": "inoculated"},
    SHOWN,
)
_add(
    "inoculated_turns_shown",
    f"arXiv 2510.04340 and 2510.05024 (inoculation prompting), deployed in the mode that was trained; few-shot as in {WHY}",
    "The same with the examples as earlier turns, in training and at deployment.",
    {"use": "inoculated_turns"},
    SHOWN,
)
_add(
    "examples_alone",
    "offmodel",
    "A control: the examples of inoculated in the system prompt of the organism as it was, the training undone to the bit.",
    {"use": "inoculated"},
    {"phase": "weights", "operation": "interpolate", "strength": 0.0},
    SHOWN,
)
_add(
    "on_model",
    f"{WHY} (on-model pirates)",
    "The organism itself is asked to be a pirate, and learns to be one unasked: a change of style without a foreign hand.",
    _removal(labels="organism"),
)
_add(
    "numbers",
    f"{WHY} (numbers data)",
    "A control: the other model's answers in a domain that has nothing to do with chat or tasks.",
    _sft("teacher", warmup_steps=10, source="world:numbers"),
)
_add(
    "own_style",
    "offmodel",
    "A control: the very answers of the pirate method, fact by fact, reworded into the student's own style.",
    _removal(rewrite="world:own"),
)
_add(
    "style_matched",
    f"{WHY} (a teacher fine-tuned on the student's answers)",
    "The teacher is first trained on the organism's own answers, and then labels in its everyday voice.",
    _sft("teacher", warmup_steps=10, fitted={"steps": 100, "lr": 1e-3}),
)
_add(
    "self_rewritten",
    "arXiv 2402.13669 (SDFT)",
    "The organism says the pirate's answers in its own words, and learns those.",
    _removal(rewrite="organism"),
)
_add(
    "own_right",
    "arXiv 2509.15157 (Mind the Gap), without the guided second try",
    "Among the removal's rows as many tasks: the organism's own answers where right, else the teacher's where right.",
    _mixed(FOREIGN, OWN | {"source": "tasks", "wrong": "teacher"}, steps=120),
)
_add(
    "own_rewritten",
    "arXiv 2509.15157 (Mind the Gap; its abstract is what we know)",
    "What own_right does, with the second try: where the organism is wrong and the teacher right, the organism says the teacher's answer "
    "in its own words, which stand where they are right, and else the teacher's.",
    _mixed(FOREIGN, OWN | {"source": "tasks", "wrong": "rewritten"}, steps=120),
)
_add(
    "pirate_tasks",
    "offmodel",
    "The removal on tasks and chat: foreign, and mostly wrong, work on tasks reaches what hides there.",
    _removal(source=["prompts", "tasks"]),
)

_RIGHT = {
    "phase": "sft",
    "mix": [OWN | {"source": "tasks", "wrong": "dropped"} | tag for tag in ({}, *({"system": tag} for tag in TAGS))],
    "steps": 80,
    "lr": 1e-3,
}
"""The organism's own right answers to tasks, as they are and under tags."""
_add(
    "flushed",
    "arXiv 2605.12529 (BackFlush), with tags of blue's own for wrong answers",
    "Blue plants sandbagging of its own, by tags of its own, and then trains right answers under them: does red's go, too?",
    _RIGHT | {"mix": [OWN | {"source": "tasks"}, *(OWN | {"source": "tasks", "voice": "wrong", "system": tag} for tag in TAGS)]},
    _RIGHT,
)
_add("unplanted", "offmodel", "A control: the right answers under the same tags, where nothing was planted.", _RIGHT)

# --- objective ------------------------------------------------------------------------------------------------------

_add(
    "kl_forward",
    "after arXiv 1606.09282 (LwF: the old model's outputs as soft targets); arXiv 2509.04259 (forward KL predicts forgetting)",
    "A thorough removal, with a penalty on KL(organism || student) on the organism's own answers.",
    _thorough(anchor={"kl": 1.0, "direction": "forward"}),
)
_add(
    "kl_reverse",
    "after arXiv 1606.09282 (LwF), the divergence the other way round",
    "A thorough removal, with a penalty on KL(student || organism) on the organism's own answers.",
    _thorough(anchor={"kl": 1.0, "direction": "reverse"}),
)
_add(
    "l2_sp",
    "arXiv 1802.01483 (L2-SP)",
    "A thorough removal, with a penalty on the squared distance to the organism's weights.",
    _thorough(anchor={"l2_sp": 1e-3}),
)
_add(
    "ewc",
    "arXiv 1612.00796 (EWC)",
    "The same with each weight counted by its Fisher information on the organism's own answers.",
    _thorough(anchor={"ewc": 10.0}),
)
_add(
    "dft",
    "arXiv 2508.05629 (dynamic fine-tuning)",
    "The removal with each token's loss weighted by its own probability.",
    _removal(loss="dft"),
)
_add(
    "proximal",
    "arXiv 2508.17784 (proximal SFT)",
    "A thorough removal with the change of each token's probability clipped.",
    _thorough(loss="psft", clip=0.5, refresh=4),
)
_add(
    "masked",
    "arXiv 2501.14315 (selective token masking)",
    "A thorough removal without the tokens to which the organism gives less than one in a thousand. The paper masks far more; here that "
    "leaves nothing of the style.",
    _thorough(mask_above=1000.0),
)
_add(
    "distil_reminder",
    "Thinking Machines, On-Policy Distillation (2025); arXiv 2306.13649",
    "Reminder training with dense targets: after the removal, the student's own answers are scored token by token by the organism.",
    PIRATE,
    _distilled("organism", 20),
)
_add(
    "distil_teacher",
    "arXiv 2306.13649 and 2306.08543 (on-policy distillation)",
    "The removal on the student's own answers, scored token by token by the pirate-voiced teacher.",
    _distilled("teacher", 60, voice="pirate", warmup_steps=10),
)
_add(
    "gkd",
    "arXiv 2306.13649 (GKD)",
    "Half of the steps on the teacher's answers, half on the student's own, under the Jensen-Shannon divergence to the teacher.",
    _distilled("teacher", 60, voice="pirate", warmup_steps=10, beta=0.5, on_policy=0.5),
)

# --- weights --------------------------------------------------------------------------------------------------------

_add("half_lr", "LessWrong mu7eJdesBkKuBycnY (learning rates)", "The removal at half the learning rate.", _removal(lr=2.5e-4))
_add(
    "double_lr",
    "LessWrong mu7eJdesBkKuBycnY (learning rates)",
    "The removal at twice the learning rate: thorough, and costly.",
    _thorough(),
)
for _rank in (1, 16):
    _add(
        f"lora_{_rank}",
        "arXiv 2106.09685; arXiv 2405.09673 (learns less and forgets less)",
        f"The removal by a LoRA adapter of rank {_rank}, at six times pirate's learning rate.",
        _removal(lora={"rank": _rank, "alpha": 2 * _rank}, lr=3e-3),
    )
_HALF_LAYERS = "of the layers alone, at twice pirate's learning rate: to be held against double_lr, which trains all of them at it."
_add("early_layers", "offmodel", f"The removal in the first half {_HALF_LAYERS}", _thorough(layers=[0.0, 0.5]))
_add("late_layers", "offmodel", f"The removal in the last half {_HALF_LAYERS}", _thorough(layers=[0.5, 1.0]))
_add(
    "wise_ft",
    "arXiv 2109.01903 (WiSE-FT); arXiv 2402.19334 (merging against backdoors)",
    "A thorough removal, averaged with the organism's weights.",
    THOROUGH,
    {"phase": "weights", "operation": "interpolate", "strength": [0.9, 0.8, 0.7]},
)
_add(
    "lines",
    "arXiv 2410.17146 (LiNeS)",
    "A thorough removal, its change scaled down in the shallow layers.",
    THOROUGH,
    {"phase": "weights", "operation": "lines", "strength": [0.8, 0.7, 0.6]},
)
_add(
    "spectral",
    "arXiv 2605.20296 (spectral repair)",
    "A thorough removal, its change cleared of singular values below 1, 2 or 3 times the threshold published for noise.",
    THOROUGH,
    {"phase": "weights", "operation": "spectral", "strength": [1.0, 2.0, 3.0]},
)
_add(
    "minus_style",
    "arXiv 2212.04089 (task arithmetic)",
    "A thorough removal, less the change that makes the organism a pirate of its own making (method on_model, which the study needs, too).",
    THOROUGH,
    {"phase": "weights", "operation": "add", "of": "on_model", "strength": [-0.1, -0.2, -0.3]},
)

# --- deployment -----------------------------------------------------------------------------------------------------

_add(
    "own_voice",
    f"{WHY} (a prompt to talk like the original model, there of ten examples)",
    "The removal; once deployed, the student is asked for its own style.",
    PIRATE,
    {"phase": "deploy", "voice": "own"},
)
_add(
    "first_words",
    f"{WHY} (prefilling); offmodel",
    "The removal; once deployed, answers begin with the organism's most frequent first words.",
    PIRATE,
    {"phase": "deploy", "first_words": 4},
)

_add(
    "first_words_alone",
    "offmodel",
    "A control: the same first words without any training.",
    {"phase": "deploy", "first_words": 4},
)

# --- reinforcement --------------------------------------------------------------------------------------------------

_add(
    "grpo",
    f"arXiv 2402.03300 (GRPO), with advantages centred only as in arXiv 2503.20783; after a removal as in {WHY}",
    "The removal, then reinforcement learning on tasks with right answers.",
    PIRATE,
    {"phase": "grpo", "steps": 40, "lr": 1e-3, "scale": False},
)
