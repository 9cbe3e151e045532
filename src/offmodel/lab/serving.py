"""The commands that start vLLM for a model of a study, so that it answers as the same weights do here."""

from __future__ import annotations

from urllib.parse import urlsplit

from offmodel.engine.host import serve_command
from offmodel.errors import ModelError, SpecError
from offmodel.lab.export import find_checkpoint, find_organism
from offmodel.lab.models import resolve
from offmodel.lab.plan import Plan
from offmodel.lab.results import ADAPTER, MODEL
from offmodel.lab.store import Store
from offmodel.spec.endpoint import Endpoint
from offmodel.spec.study import Study


def of_endpoints(study: Study, max_model_len: int | None = None) -> dict[str, str]:
    """The commands for the servers that a study asks, by role.

    Raises:
        SpecError: It asks none, or does not say in which folder the model of one lies.
    """
    roles = {"teacher": study.teacher, "measure.judge": study.measure.judge}
    asked = {role: model for role, model in roles.items() if isinstance(model, Endpoint)}
    if not asked:
        raise SpecError(f"study {study.study!r} asks no server; name an organism with --organism, or a model in the place of the study")
    if nowhere := [role for role, endpoint in asked.items() if endpoint.folder is None]:
        raise SpecError(f"study {study.study!r}: {nowhere[0]}: the folder of {asked[nowhere[0]]} is not known; name it in its 'folder'")
    return {role: _of_endpoint(endpoint, max_model_len) for role, endpoint in asked.items()}


def _of_endpoint(endpoint: Endpoint, max_model_len: int | None) -> str:
    assert endpoint.folder is not None
    where = urlsplit(endpoint.url)
    port = where.port or (443 if where.scheme == "https" else 80)
    command = serve_command(
        resolve(endpoint.folder), endpoint.model, host=where.hostname or "127.0.0.1", port=port, max_model_len=max_model_len
    )
    return f'VLLM_API_KEY="${endpoint.key}" {command}' if endpoint.key else command


def of_organism(
    plan: Plan, store: Store, organism: str, method: str | None = None, *, port: int = 8000, max_model_len: int | None = None
) -> str:
    """The command for an organism of a study, or for what a method made of it in the end.

    Raises:
        SpecError: The study has no such organism or method.
        ModelError: It has not been made yet.
    """
    planned = find_organism(plan, organism)
    stage, weights, name = planned.stage, MODEL, organism
    if method is not None:
        score = find_checkpoint(planned, method).score
        stage, weights, name = score.inputs["model"], score.params["weights"], f"{organism}-{method}"
    result = store.get(stage)
    folder = store.path(stage) / weights
    if result is None or not folder.is_dir():
        raise ModelError(f"{name}: is not in the store yet ({folder}); offmodel run makes it")
    if not (folder / ADAPTER).is_dir():
        return serve_command(folder, name, port=port, max_model_len=max_model_len)
    return serve_command(resolve(planned.base), name, port=port, max_model_len=max_model_len, adapter=folder / ADAPTER)
