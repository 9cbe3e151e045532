"""The registry: names are unique, unknown ones are answered with the nearest, other packages can add their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from offmodel import catalog
from offmodel.errors import SpecError


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_entries", {})
    monkeypatch.setattr(catalog, "_loaded", True)


def test_a_registered_thing_is_found_with_what_is_said_about_it() -> None:
    @catalog.register("pair", "parrot", source="arXiv 0000.00000")
    def parrot() -> None:
        """Repeats

        what it hears.
        """

    entry = catalog.entry("pair", "parrot")
    assert (entry.kind, entry.name, entry.source, entry.text) == ("pair", "parrot", "arXiv 0000.00000", "Repeats\n\nwhat it hears.")
    assert catalog.get("pair", "parrot") is parrot


def test_names_and_kinds_are_in_alphabetical_order() -> None:
    for kind, name in (("suite", "b"), ("pair", "z"), ("suite", "a")):
        catalog.add(kind, name, 1, source="here", text="")
    assert catalog.kinds() == ["pair", "suite"]
    assert catalog.names("suite") == ["a", "b"]
    assert catalog.names("method") == []


def test_a_name_taken_is_not_taken_again() -> None:
    catalog.add("pair", "parrot", 1, source="first", text="")
    with pytest.raises(SpecError, match=r"'parrot' is registered twice \(sources: 'first' and 'second'\)"):
        catalog.add("pair", "parrot", 2, source="second", text="")
    assert catalog.get("pair", "parrot") == 1
    catalog.add("suite", "parrot", 3, source="another kind", text="")


@pytest.mark.parametrize(("name", "answer"), [("parot", "did you mean 'parrot'"), ("zzz", "valid are: crow, parrot")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, answer: str) -> None:
    catalog.add("pair", "parrot", 1, source="here", text="")
    catalog.add("pair", "crow", 1, source="here", text="")
    with pytest.raises(SpecError, match=f"unknown pair '{name}': {answer}"):
        catalog.get("pair", name)


def test_another_package_adds_its_own_through_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aviary.py").write_text("from offmodel import catalog\ncatalog.add('pair', 'parrot', 7, source='aviary', text='')\n")
    info = tmp_path / "aviary-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aviary\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[offmodel]\nbirds = aviary\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "_BUILT_IN", ())
    monkeypatch.setattr(catalog, "_loaded", False)
    assert catalog.names("pair") == ["parrot"]
    assert catalog.get("pair", "parrot") == 7
