"""Files that are replaced whole or stay as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from offmodel.files import replacing


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


def test_a_block_that_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="in the middle"), replacing(path) as new:
        new.write_text("ha")
        raise ValueError("in the middle")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
