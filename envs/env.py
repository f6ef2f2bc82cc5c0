"""The environment protocol: what an author writes.

One instance lives for one episode. `envs/builtin/sensors.py` is a complete small example. The author writes
messages; tokens, deadlines, threads and error classes are the business of `envs.session` and `rollout`.
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict

from envs.agents.access import ModelAccess
from envs.dynamic_tool import DynamicTool
from envs.handover import turn_reward
from envs.message import Message, ToolCall
from envs.text import encodable_json, shown
from envs.tool import read_tools
from envs.tool_arguments import ToolMistake, UnknownHint
from envs.user import ScriptUser, User

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 0.1
MOST_NOISE = 3
# What an expert yields (its next message) and what it is sent (the tool results of that message).
Expert = Generator[Message, list[str], None]


@dataclass(frozen=True)
class Task:
    """One problem, as plain JSON data, e.g. `Task("calculator", {"op": "add", "a": 3, "b": 4})`.

    noise: how noisily it is played, from 0 (not at all) to 3 (severely); see `envs.noise`. Raises ValueError
    for any other number, TypeError for data that is no dict.
    """

    env: str
    data: dict[str, Any]
    noise: int = 0

    def __post_init__(self) -> None:
        data = cast(object, self.data)  # an author's: it may be anything
        if not isinstance(data, dict):
            raise TypeError(
                f"a task of environment {self.env!r} has the data {shown(data)}: sample() has to return "
                "a dict of plain JSON"
            )
        object.__setattr__(self, "data", encodable_json(self.data))
        if self.noise not in range(MOST_NOISE + 1):
            raise ValueError(
                f"a task of environment {self.env!r} has noise {self.noise!r}: it has to be a whole "
                f"number from 0 (none) to {MOST_NOISE} (severe)"
            )

    @property
    def id(self) -> str:
        """A hash of the content: equal problems have equal ids, whoever made them, however noisy."""
        text = json.dumps([self.env, self.data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def split(self) -> Split:
        """Which split the content falls in; a task can so never be in both."""
        share = int(self.id[:8], 16) / 0xFFFFFFFF
        return "heldout" if share < HELDOUT_SHARE else "train"


@dataclass(frozen=True)
class Reply:
    """The environment's answer to a message without a tool call; `done` ends the episode."""

    messages: tuple[Message, ...] = ()
    done: bool = True


@dataclass(frozen=True)
class Deadlines:
    """Seconds an environment may take for each of its acts; then it is at fault."""

    reset_seconds: float = 30.0
    tool_seconds: float = 30.0
    score_seconds: float = 30.0
    close_seconds: float = 10.0
    agent_seconds: float = 300.0


class EnvConfig(BaseModel):
    """Base of an environment's own settings (the table `[env.config]`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Env:
    """Base class of environments: one instance per episode, then discarded.

    Subclasses give `sample` (or `tasks`), `reset`, methods marked `@tool`, `score`, and, where
    they can, `expert`.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[EnvConfig]] = EnvConfig
    # Of a graded environment: its config has `difficulty`, from 1 to this, and its tasks' data too.
    difficulties: ClassVar[int] = 0
    # The names of the rewards that it gives, those of turns included, () for none of its own; None where they
    # are not said. A class's own, unless an instance has others by its settings.
    reward_names: tuple[str, ...] | None = None
    # The least and the most that a reward can be; what `dorado env check` holds it to.
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    # How long its acts may take where a run does not say so ([env.deadlines]). A class's own, unless an
    # instance has others by its settings.
    deadlines: Deadlines = Deadlines()
    # True where the episode has a user who answers what the policy says to them (`self.user`). A class's own,
    # unless an instance has others by its settings.
    has_user: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a tool that cannot be offered, as ToolMistake. Hints of what the module defines only below
        are looked at when the tools are first used."""
        super().__init_subclass__(**options)
        with contextlib.suppress(UnknownHint):
            for name in read_tools(cls):
                if name in _OWN:
                    raise ToolMistake(
                        f"tool {cls.__name__}.{name}: {name!r} is a name of the environment protocol's own: "
                        f"call the tool otherwise, such as {name}_it"
                    )

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        # Facts of this episode worth keeping, set in `reset`; they end on its trajectory.
        self.notes: dict[str, str] = {}
        # What `reward` gave: turn, name, number.
        self._turn_rewards: list[tuple[int, str, float]] = []
        # The user of the episode, by a script; the session puts another one in its place where a model plays.
        self.user: User = ScriptUser()

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """The data of one random task. Called on an instance that plays no episode."""
        raise TypeError(f"environment {self.name!r} has to define sample() or tasks()")

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """The tasks of a split in a seeded order; endless unless overridden."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            task = Task(self.name, self.sample(rng))
            if task.split == split:
                yield task

    def task_features(self, task: Task) -> Mapping[str, Any]:
        """Tell what a task is like before it is played, as plain JSON; forecasts of its pass rate go by it.

        By default the task's data. Called on an instance that plays no episode, once for every task drawn.
        """
        return task.data

    async def reset(self, task: Task) -> list[Message]:
        """Build the world of this task and return the opening messages."""
        raise TypeError(f"environment {self.name!r} has to define reset()")

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        """Tools known only after `reset`, such as a server's; offered beside the `@tool` methods."""
        return ()

    async def reply(self, text: str) -> Reply:
        """The policy wrote `text` and called no tool.

        By default that is its final answer; with a user (`has_user`) they answer, and what they end the
        conversation after is the final one.
        """
        if not self.has_user:
            self.answer = text
            return Reply(done=True)
        said = await self.user.answer(text)
        self.answer = text if said.ended else self.answer
        return Reply((said.message,), done=said.ended)

    async def play(self, access: ModelAccess) -> str:
        """Let the agent play, where `served_model` is set: run it to its end, and return its own log.

        Cancelled when the episode ends before it; then nothing of the agent may be left running. Raises
        whatever says that the agent failed.
        """
        raise TypeError(f"environment {self.name!r} has to define play()")

    async def score(self) -> Mapping[str, float | Mapping[int, float]]:
        """Named rewards of the finished episode, judged on the final state or answer.

        A number comes with the end; numbers by turn, such as {"found": {0: 0.5}}, are those turns' own, by
        the `turn_index` that each had.
        """
        raise TypeError(f"environment {self.name!r} has to define score()")

    def reward(self, value: float, name: str = "turn") -> None:
        """Give the turn in progress a reward, as a part of the episode's reward of this name.

        From a tool or from `reply`; what a turn is given adds up. Raises TypeError for what is no finite
        number, RuntimeError before the first turn.
        """
        known, number = turn_reward(name, value)
        if self.turn_index < 0:
            raise RuntimeError("reward() is for a turn of the policy, and there has been none yet")
        self._turn_rewards.append((self.turn_index, known, number))

    async def close(self) -> None:
        """Release what `reset` acquired. Called exactly once, whatever happened before."""

    def expert(self, task: Task) -> Expert:
        """A scripted solver: yields assistant messages, receives the tool results of each."""
        raise TypeError(f"environment {self.name!r} offers no expert")

    def probe(self) -> None:
        """Look, once before a run, at what the settings name outside of this process: a server, say.

        Raises ValueError, or `envs.session.HostFault`, with one sentence.
        """

    @property
    def tool_owner(self) -> "Env":
        """The instance whose `@tool` methods the policy is offered: itself, or one that it wraps."""
        return self

    # The name under which an agent is served the policy: set in `reset` where an agent plays (`play`) and the
    # policy is not asked turn by turn; "" elsewhere.
    served_model: str = ""
    answer: str | None = None
    # A tool sets this to True where its call ended the world: the episode ends with the turn.
    done: bool = False
    # The turn in progress, from 0, of those that the environment sees (a call that cannot be read never
    # reaches it); -1 in `reset`. The session's to set.
    turn_index: int = 0


# What a tool cannot be called, since it would stand in the protocol's place.
_OWN = {
    name for name in (*dir(Env), *Env.__annotations__, "config", "notes", "user") if name[0] != "_"
}


def call(name: str, **arguments: Any) -> Message:
    """The assistant message with one tool call, for experts: `results = yield call("add", a=1, b=2)`."""
    return Message("assistant", tool_calls=(ToolCall(name, arguments),))


def say(text: str) -> Message:
    """The assistant message with plain text, for experts: `yield say("42")`."""
    return Message("assistant", text)
