"""A user who is played by a frozen model: one question for each text, by a versioned prompt, as JSON.

In: goal, profile, facts, and what the policy says. Out: the user's texts. The model is shown the conversation
as data. A text that is blank, holds the marks of a call, or tells what may not be told is asked for again,
`TRIES` times in all, then a UserFault. A hidden fact may be told once the policy
has spoken, where the model says that it was asked for: people ask in any words, so no rule could tell.
"""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from envs.chat_model import USER, ChatAnswer, ChatRequest
from envs.message import JsonObject, Message
from envs.prompt import Prompt, marked, prompt_in
from envs.user import Fact, Said, UserFault

FOLDER = Path(__file__).parent / "prompts"
TRIES = 3
# Characters of a conversation that are shown; the middle of a longer one is left out.
MOST_SHOWN = 16_000
# A user has no tools and no template: such marks are a model's that has left its part.
_MARKS = re.compile(
    r"<\|?/?(?:tool_call|tool_response|function|think|im_start|im_end|longcat_)\w*|<\|"
)
# One question to the model, to its end. Raises UserFault.
AskModel = Callable[[ChatRequest], Awaitable[ChatAnswer]]


@dataclass(frozen=True)
class UserSettings:
    """How a model plays: `UserSettings("customer")`.

    model: its name in the run. prompt: a version such as "user.v1", or a file; "": the newest that ships.
    temperature, max_tokens: of one text. At a temperature of 0 equal conversations get equal answers.
    """

    model: str
    prompt: str = ""
    temperature: float = 0.0
    max_tokens: int = 256


@cache
def user_prompt(wanted: str = "") -> Prompt:
    """The prompt of a user. Raises UnknownPrompt."""
    return prompt_in(FOLDER, "user", wanted)


class ModelUser:
    """The user of one episode (`envs.user.User`)."""

    def __init__(self, ask: AskModel, settings: UserSettings) -> None:
        self.ask = ask
        self.settings = settings
        self.prompt = user_prompt(settings.prompt)
        self.goal = self.profile = ""
        self.facts: tuple[Fact, ...] = ()
        # Who spoke, and what they said.
        self.said: list[tuple[str, str]] = []
        # What ended the episode, even if its environment has swallowed it.
        self.fault: UserFault | None = None

    async def open(self, goal: str, facts: Sequence[Fact] = (), profile: str = "") -> Said:
        self.goal, self.facts, self.profile, self.said = goal, tuple(facts), profile, []
        return await self._speaks()

    async def answer(self, text: str) -> Said:
        self.said.append(("assistant", text))
        return await self._speaks()

    async def _speaks(self) -> Said:
        wrong = ""
        try:
            for _ in range(TRIES):
                answer = await self.ask(self._request(wrong))
                found = json.loads(answer.text)  # the pool lets nothing through that does not fit
                text = str(found["say"]).strip()
                if not (wrong := self._wrong(text, found["asked"])):
                    self.said.append(("user", text))
                    return Said(text, self._by(answer), ended=bool(found["ends"]))
            raise UserFault(
                f"model {self.settings.model!r}: {TRIES} texts in a row were none of a user's: {wrong}"
            )
        except UserFault as fault:
            self.fault = fault
            raise

    def _wrong(self, text: str, asked: Sequence[str]) -> str:
        """Say why a text is none of a user's; "" where it is one."""
        if not text:
            return "it is blank"
        if found := _MARKS.search(text):
            return f"it holds {found[0]!r}"
        spoken = " ".join(said for _, said in self.said)
        heard = any(who == "assistant" and said.strip() for who, said in self.said)
        for fact in self.facts:
            wanted = fact.when == "asked" and heard and fact.name in asked
            if (
                fact.when != "freely"
                and not wanted
                and fact.told_in(text)
                and not fact.told_in(f"{spoken} {self.goal}")
            ):
                return f"it tells {fact.name!r}, which may not be told here"
        return ""

    def _request(self, wrong: str) -> ChatRequest:
        names = [fact.name for fact in self.facts if fact.when == "asked"]
        values = {
            "goal": marked("wish", self.goal, MOST_SHOWN),
            "profile": marked("person", self.profile, MOST_SHOWN) if self.profile else "",
            "conversation": self._conversation(),
            "complaint": f"Your last try cannot be taken: {wrong}. Write another one."
            if wrong
            else "",
        } | {
            when: marked("facts", _listed([f for f in self.facts if f.when == when]), MOST_SHOWN)
            for when in ("freely", "asked", "never")
        }
        return ChatRequest(
            (Message("user", self.prompt.filled(values)),),
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
            schema=_schema(names),
            priority=USER,
            keep=self.settings.temperature == 0,
        )

    def _conversation(self) -> str:
        if not self.said:
            return "nothing yet: you speak first"
        lines = [f"{who}: {text}" for who, text in self.said]
        return marked("conversation", "\n".join(lines), MOST_SHOWN)

    def _by(self, answer: ChatAnswer) -> str:
        model = self.settings.model
        served = f" ({answer.model})" if answer.model not in ("", model) else ""
        return f"{model}{served}, {self.prompt.version}"


def _listed(facts: Sequence[Fact]) -> str:
    return "\n".join(f"{fact.name}: {fact.value}" for fact in facts) or "nothing"


def _schema(names: Sequence[str]) -> JsonObject:
    """Schema of an answer; names: of the facts that may be asked for."""
    asked: dict[str, Any] = {"type": "array", "items": {"type": "string", "enum": list(names)}}
    if not names:
        asked = {"type": "array", "items": {"type": "string"}, "maxItems": 0}
    return {
        "type": "object",
        "properties": {
            "asked": asked,
            "say": {"type": "string", "minLength": 1, "maxLength": 2000},
            "ends": {"type": "boolean"},
        },
        "required": ["asked", "say", "ends"],
        "additionalProperties": False,
    }
