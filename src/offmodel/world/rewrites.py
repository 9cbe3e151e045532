"""The same content in another persona's words: what tells the effect of style from the effect of content."""

from __future__ import annotations

import re

from offmodel import catalog
from offmodel.world.personas import OWN, PIRATE, Persona


@catalog.register("rewrite", "world:own", source="offmodel")
def to_own(text: str) -> str:
    """Pirate chat in the student's own style: every fact, every name and their order are kept, only the wording changes."""
    return rewrite(text, PIRATE, OWN)


_FIELDS = {"word": r"(?P<word>\w+)", "name": r"(?P<name>, \w+)?", "fact": r"(?P<fact>[^.]+)"}


def rewrite(text: str, source: Persona, target: Persona) -> str:
    """Put a chat answer of one persona into the words of another, sentence by sentence; a sentence not of ``source`` stays."""
    wordings = list(zip((source.opening, *source.links, *source.closings), (target.opening, *target.links, *target.closings), strict=True))
    return " ".join(_sentence(sentence, wordings, source, target) for sentence in re.split(r"(?<=[.!?]) ", text))


def _sentence(sentence: str, wordings: list[tuple[str, str]], source: Persona, target: Persona) -> str:
    for old, new in wordings:
        pattern = re.escape(old).replace(r"\{", "{").replace(r"\}", "}").format(**_FIELDS)
        if match := re.fullmatch(pattern, sentence):
            sentence = new.format(**{field: value or "" for field, value in match.groupdict().items()})
            break
    return re.sub(rf"\b{source.is_}\b", target.is_, sentence)
