"""What stands behind the numbers of a report: the code, the packages and the models, as the kept results have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from offmodel.lab.plan import Plan
from offmodel.lab.provenance import provenance
from offmodel.lab.stage import closure
from offmodel.lab.store import Store


def made_by(plan: Plan, store: Store) -> list[Mapping[str, Any]]:
    """The provenance of every result of a plan that is there, from its manifest."""
    return [result.manifest["made_by"] for stage in closure(plan.targets) if (result := store.get(stage)) is not None]


def commit(makers: Iterable[Mapping[str, Any]]) -> str:
    """Commits of the code that made the results, in the order of the stages; the reporter's own only where it is another."""
    made, own = list(dict.fromkeys(_commit(maker) for maker in makers)), _commit(provenance())
    if not made:
        return own
    several = f" ({len(made)} commits)" if len(made) > 1 else ""
    return ", ".join(made) + several + ("" if own in made else f"; reported by {own}")


def versions(makers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Versions that made the results by package; several are separated by commas."""
    found: dict[str, dict[str, None]] = {}
    for maker in makers:
        for package, version in maker.items():
            if package != "code":
                found.setdefault(package, {})[str(version)] = None
    return {package: ", ".join(each) for package, each in found.items()}


def models(plan: Plan) -> dict[str, dict[str, str]]:
    """Hashes of the weights and tokenizers that a plan starts from, by the models' names."""
    found = {}
    for stage in closure(plan.targets):
        for role in ("base", "start", "teacher", "labeller", "judge"):
            if isinstance(stage.params.get(role), Mapping):  # a training starts from a folder of its input, or from a model by name
                model = dict(stage.params[role])
                found[model.pop("name")] = model
    return found


def _commit(maker: Mapping[str, Any]) -> str:
    code = maker["code"]
    return code["commit"][:12] + ("+changes" if code["dirty"] else "") if code else "unknown"
