"""Models and data sets of the Hugging Face hub. Safetensors only; code from the hub is never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from offmodel.errors import DataError, HubError, ModelError, SpecError

_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]
"""The same weights again, in their makers' own layout."""


def is_model_id(name: str) -> bool:
    """Whether a name can be that of a model on the hub (``owner/name``, or ``owner/name@revision``), and is no path."""
    return bool(_ID.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.is_dir()


def cached_model(name: str, file: str = "config.json") -> Path | None:
    """A file of a model of the hub as it lies in the hub's cache, without asking the hub; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = _ID.fullmatch(name)
    path = try_to_load_from_cache(found["id"], file, revision=found["revision"]) if found else None
    return Path(path) if isinstance(path, str) else None


def has_model(name: str) -> bool:
    """Whether :func:`model_folder` would have to fetch nothing."""
    return _cached_folder(name) is not None


def has_dataset(name: str) -> bool:
    """Whether a data set is a folder, or in the cache of the hub or of ``datasets``: enough to read it without a network."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = (Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}", Path(config.HF_DATASETS_CACHE) / name.replace("/", "___"))
    return Path(name).is_dir() or any(path.is_dir() for path in caches)


def _snapshot(name: str, *, fetch: bool) -> Path:
    from huggingface_hub import snapshot_download

    found = _ID.fullmatch(name)
    assert found is not None
    settings: dict[str, Any] = {"revision": found["revision"], "allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    return Path(snapshot_download(found["id"], local_files_only=not fetch, **settings))


def _cached_folder(name: str) -> Path | None:
    """A model as it lies in the hub's cache, if all of it does: of one of which only some files were fetched there is a folder, too."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    from offmodel.engine.folder import check_model_folder

    try:
        return check_model_folder(_snapshot(name, fetch=False))
    except (LocalEntryNotFoundError, ModelError):
        return None


@lru_cache
def model_folder(name: str) -> Path:
    """The folder of a model of the hub, downloaded if it is not whole in the hub's cache.

    What is in the cache is used as it is, so that a study that goes on finds the model that it began with, also without a network.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` with a branch, a tag or a commit.

    Raises:
        ModelError: There is no such model, it may not be read, or the hub cannot be reached; in one sentence, with what to do.
    """
    if (folder := _cached_folder(name)) is not None:
        return folder
    found = _ID.fullmatch(name)
    assert found is not None
    try:
        return _snapshot(name, fetch=True)
    except Exception as error:  # the hub's client has many ways to fail
        raise ModelError(f"{name}: {_reason(error, found['id'], found['revision'], 'model')}") from error


def dataset_rows(name: str, config: str | None, split: str, revision: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set of the hub, or of a folder of data files, each after its place.

    Args:
        name: ``owner/name``, or a folder.
        config: Its configuration; None for the only one.
        split: Its split.
        revision: A branch, a tag or a commit; None for the newest, or what is in the cache where the hub cannot be reached.

    Raises:
        DataError: There is no such data set, configuration or split, it may not be read, or the hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, revision=revision)
    except Exception as error:
        raise DataError(f"{name}: {_reason(error, name, revision, 'data set')}") from error
    return ((f"{name}, {split}: row {i}", dict(row)) for i, row in enumerate(rows))


def upload(folder: Path, name: str, kind: Literal["model", "dataset"], *, private: bool) -> str:
    """Upload a folder as one commit, into a repository that is made if it is not there.

    Args:
        folder: Its files.
        name: ``owner/name``.
        kind: Of the repository.
        private: Whether nobody else may see it. One that is there and public is then refused.

    Returns:
        The repository's address.

    Raises:
        SpecError: The name is none.
        HubError: The hub cannot be reached, or refuses; in one sentence, with what to do.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise SpecError(f"{name!r} is no repository of the hub; expected owner/name")
    hub = HfApi()
    try:
        where = hub.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        public = private and not hub.repo_info(name, repo_type=kind).private
        if not public:
            hub.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message="Pushed by offmodel")
    except Exception as error:  # the hub's client has many ways to fail
        raise HubError(f"{name}: {_refusal(error)}") from error
    if public:
        raise HubError(f"{name}: is there already, and everybody can see it; make it private, take another name, or push with --public")
    return str(where)


def _refusal(error: Exception) -> str:
    """Why the hub does not take something, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know you; log in with 'hf auth login', or set HF_TOKEN"
    if status == 403:
        return "the hub does not let you write there; take a name of your own or of an organisation of yours, and a token that may write"
    if status is None:
        return f"the hub cannot be reached ({type(error).__name__}: {error}); the same command tries again"
    return f"the hub refuses ({type(error).__name__}: {error})"


def _reason(error: BaseException, name: str, revision: str | None, what: str) -> str:
    """Why the hub does not give something, and what to do."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    page = f"https://huggingface.co/{'datasets/' if what == 'data set' else ''}{name}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"this {what} is gated; ask for access at {page} and log in with 'hf auth login'"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"the hub has this {what}, but no revision {revision!r} of it; see {page}/commits/main"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"the hub has no such {what}, or it is private; check the name, or log in with 'hf auth login'"
    if any(isinstance(cause, LocalEntryNotFoundError | ConnectionError) for cause in causes):
        where = "" if what == "model" else " --repo-type dataset"
        return (
            f"is no folder and not in the hub's cache, and the hub cannot be reached; get it with 'hf download {name}{where}' where there "
            "is a network, or name a folder"
        )
    return f"the hub does not give this {what} ({type(error).__name__}: {error})"
