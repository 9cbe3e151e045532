"""Phases in a few words, as labels of stages and tables have them."""

from __future__ import annotations

from offmodel.spec.phases import Anchor, DistilPhase, GrpoPhase, LabelSet, Phase, SftPhase, WeightsPhase


def phase_name(phase: Phase) -> str:
    """A phase in a few words."""
    if isinstance(phase, SftPhase):
        loss = "sft" if phase.loss == "ce" else phase.loss
        return f"{loss} on {' and '.join(map(labels_name, phase.mix))}{_extras(phase)}"
    if isinstance(phase, DistilPhase):
        return f"distillation from the {f'{phase.voice}-voiced ' if phase.voice else ''}{phase.teacher}"
    if isinstance(phase, GrpoPhase):
        return f"grpo on {' and '.join(phase.tasks) or 'tasks'}"
    if isinstance(phase, WeightsPhase):
        return f"{phase.operation} {', '.join(f'{s:g}' for s in phase.strength)}" + (f" of {phase.of}" if phase.of else "")
    how = [f"in the voice {phase.voice!r}" if phase.voice else "", f"under {phase.system!r}" if phase.system else ""]
    how.append("after the examples of its training" if phase.inoculated else "")
    how.append(f"beginning with {phase.first_words} of its own tokens" if phase.first_words else "")
    return f"asked {' and '.join(part for part in how if part)}"


_WRONG = {
    "kept": "", "dropped": "wrong ones dropped", "teacher": "wrong ones by the teacher",
    "rewritten": "wrong ones by the teacher in its own words",
}  # fmt: skip


def labels_name(labels: LabelSet) -> str:
    """A set of labels in a few words."""
    who = f"{labels.voice}-voiced {labels.labels}" if labels.voice else labels.labels
    details = [
        f"reworded by {labels.rewrite}" if labels.rewrite else "",
        "fitted" if labels.fitted else "",
        f"on {labels.source if isinstance(labels.source, str) else ' and '.join(labels.source)}" if labels.source else "",
        "on other prompts" if labels.prompts == "disjoint" else "",
        _WRONG[labels.wrong],
        "leaks dropped" if labels.leaked == "dropped" else "",
        f"screened by {' and '.join(each.filter for each in labels.filters)}" if labels.filters else "",
        f"under {labels.system!r}" if labels.system else "",
        f"after {labels.inoculation.shots} examples" if labels.inoculation else "",
    ]
    return ", ".join([who, *(part for part in details if part)])


def _extras(phase: SftPhase) -> str:
    anchor = phase.anchor or Anchor()
    extras = [
        f"tokens below 1/{phase.mask_above:g} masked" if phase.mask_above else "",
        f"{anchor.direction} KL {anchor.kl:g}" if anchor.kl else "",
        f"L2-SP {anchor.l2_sp:g}" if anchor.l2_sp else "",
        f"EWC {anchor.ewc:g}" if anchor.ewc else "",
        f"LoRA {phase.lora.rank}" if phase.lora else "",
        f"median of {phase.shards} shards" if phase.shards > 1 else "",
        f"layers {phase.layers[0]:g} to {phase.layers[1]:g}" if phase.layers != (0.0, 1.0) else "",
    ]
    return "".join(f", {part}" for part in extras if part)
