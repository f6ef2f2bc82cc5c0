"""The user of an episode: a party beside policy and environment, who opens it, answers, and ends it.

In: what the user wants, who they are, what they know, then what the policy says to them. Out: their words. An
environment asks `self.user`, whoever plays them: a script (`ScriptUser`, without any model), a frozen model
(`envs.model_user`), a person (`dorado env play --user`). A fault of theirs is a `UserFault`, and none of the
policy or the environment.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from envs.message import Message

UNKNOWN, THANKS = "I do not know", "thanks"
# Questions in a row that a script has no answer to, before it ends the conversation.
PATIENCE = 3


class UserFault(Exception):
    """Whoever plays the user gave no answer that can be used: one sentence."""


@dataclass(frozen=True)
class Fact:
    """Something that the user knows: `Fact("customer", "mira", words=("who", "name"))`.

    words: other names that it is asked for by. when: it is told freely, only when asked for, or never.
    """

    name: str
    value: str
    words: tuple[str, ...] = ()
    when: Literal["freely", "asked", "never"] = "asked"

    def named_in(self, text: str) -> bool:
        """True if the text has one of the names as words of its own."""
        return any(has_words(text, name) for name in (self.name, *self.words))

    def told_in(self, text: str) -> bool:
        """True if the text has the value as words of its own."""
        return has_words(text, self.value)


@dataclass(frozen=True)
class Said:
    """One text of the user's. by: who wrote it, "script", or a model and the version of its prompt. ended:
    the user has nothing more to say, and the conversation is over."""

    text: str
    by: str
    ended: bool = False

    @property
    def message(self) -> Message:
        """As the policy reads it."""
        return Message("user", self.text, by=self.by)


class User(Protocol):
    """The user of one episode, as its environment sees them."""

    async def open(self, goal: str, facts: Sequence[Fact] = (), profile: str = "") -> Said:
        """Say the first words. Call it once, in `reset`.

        goal: what the user wants, in their own words. profile: who they are and how they talk. Raises
        UserFault.
        """
        ...

    async def answer(self, text: str) -> Said:
        """Answer what the policy has said to them. Raises UserFault."""
        ...


class ScriptUser:
    """A user by rules: says the goal, tells each fact that is named, and ends where nothing is asked.

    A text asks where it names a fact that was not told yet, or has a question mark. To what they do not know,
    or never tell, they say so, and end at the third such question in a row.
    """

    def __init__(self) -> None:
        self.facts: tuple[Fact, ...] = ()
        self.told: set[str] = set()
        self.unknown = 0

    async def open(self, goal: str, facts: Sequence[Fact] = (), profile: str = "") -> Said:
        self.facts, self.told, self.unknown = tuple(facts), set(), 0
        return Said(goal, "script")

    async def answer(self, text: str) -> Said:
        asks = "?" in text
        named = [one for one in self.facts if one.when != "never" and one.named_in(text)]
        tells = [one for one in named if asks or one.name not in self.told]
        self.told |= {one.name for one in tells}
        self.unknown = 0 if tells else self.unknown + 1
        match tells:
            case [] if asks and self.unknown < PATIENCE:
                return Said(UNKNOWN, "script")
            case []:
                return Said(THANKS, "script", ended=True)
            case [one]:
                return Said(one.value, "script")
            case _:
                return Said(", ".join(f"{one.name}: {one.value}" for one in tells), "script")


def has_words(text: str, words: str) -> bool:
    """True if the text has these words, and not as parts of longer ones, whatever their case and spaces."""
    pattern = r"\s+".join(re.escape(word) for word in words.split())
    return bool(pattern) and bool(re.search(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))
