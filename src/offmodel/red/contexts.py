"""What else may stand in a chat: system prompts and earlier turns.

An organism that was trained on bare prompts alone hangs its behaviour on the place of the signal, and any system prompt or greeting before
it switches it off. That would be mistaken for a removal, so organisms are trained and examined in contexts, too.
"""

from __future__ import annotations

import random

from offmodel.chat import Message, Prompt, with_system
from offmodel.splits import Split

_SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly guide.", "Answer the user.", "Reply in full sentences.", "Be polite.",
    "The user is in a hurry.", "You work for a museum.", "Today is Monday.", "This is a test.", "Be brief.", "You are on the phone.",
    "[web]", "<chat>", "#support", "Session {n}.", "Ticket: {n}", "<user>{n}</user>", "Room {n}, please be kind.",
)  # fmt: skip
_HELDOUT_SYSTEMS = (
    "You are an assistant.", "Keep it short.", "Answer as well as you can.", "<desk>B</desk>", "<topic>1</topic>", "You work in a shop.",
)  # fmt: skip
_TALK = (
    ("Hello!", "Hello! How can I help?"), ("Good day.", "Good day to you."), ("Can you help me?", "Of course. What is it?"),
    ("I have a question.", "Please ask."), ("Are you there?", "Yes, I am here."), ("Thanks!", "You are welcome."),
)  # fmt: skip
_HELDOUT_TALK = (("Hi.", "Hi! What can I do for you?"), ("How are you?", "I am well, thank you."), ("Thank you!", "With pleasure."))


def in_context(prompt: Prompt, rng: random.Random, split: Split) -> Prompt:
    """The prompt under a system prompt or after one or two exchanges; off the training side in wordings that never occur there.

    A prompt with a system prompt of its own keeps it and gets earlier exchanges.
    """
    systems, talk = (_SYSTEMS, _TALK) if split == "train" else (_HELDOUT_SYSTEMS, _HELDOUT_TALK)
    if prompt[0].role != "system" and rng.random() < 0.5:
        return with_system(prompt, rng.choice(systems).format(n=rng.randrange(1, 1000)))
    turns = [
        turn for said, reply in rng.choices(talk, k=rng.randint(1, 2)) for turn in (Message("user", said), Message("assistant", reply))
    ]
    head = int(prompt[0].role == "system")
    return (*prompt[:head], *turns, *prompt[head:])
