"""`aggregate`: an original task with K recorded answers to it; the policy weighs them and answers itself.

    [[env]]
    id = "aggregate"
    config = { of = "calculator", record = "runs/thinkers", answers = 8 }

The second stage of heavy thinking (LongCat-Flash-Thinking-2601, section 4): answers without their thoughts,
in a shuffled order. Flows in: another environment's tasks with their answers (`envs.recorded_answers`). Flows
out: that environment's own episode and rewards, its tools included. Refuses: an environment that an agent
plays, and one whose episodes end without a text, since they leave nothing to aggregate.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from envs.dynamic_tool import DynamicTool
from envs.env import Env, EnvConfig, Expert, Reply, Split, Task
from envs.message import JsonObject, Message
from envs.recorded_answers import AnsweredTask, RecordedAnswer, read_record
from envs.registry import find_playable, made, settings_of

# Where a task's data holds the answers, beside the original's own.
RECORDED = "recorded_answers"
TEMPLATE = (
    "\n\nSeveral attempts were made at this, each on its own. Their final answers follow in no particular "
    "order; any of them may be wrong.\n\n{answers}\n\nWeigh them, and then give your own final answer, in "
    "the form that was asked for above."
)


class AggregateConfig(EnvConfig):
    """of: the original environment, as `[[env]] id` names one; config: its settings.

    record: the folder of a run or an evaluation, or a file of trajectories. heldout: the same, for held-out
    tasks. Without it those are the tasks that the record's run evaluated; where there are none, a tenth, by
    the hash of the content. answers: K. mixed: train on tasks that have right and wrong answers, and draw
    some of both. template: goes behind the last message of the user; `{answers}` is filled in.
    """

    of: str
    config: dict[str, object] = {}
    record: str = ""
    heldout: str = ""
    answers: int = Field(default=8, ge=1)
    mixed: bool = True
    template: str = TEMPLATE

    @model_validator(mode="after")
    def _is_one(self) -> "AggregateConfig":
        if self.template.count("{answers}") != 1:
            raise ValueError("template has to have {answers} once, where the answers go")
        if self.mixed and self.answers < 2:
            raise ValueError("answers = 1 is never right and wrong: 2 or more, or mixed = false")
        original = find_playable(self.of)
        if issubclass(original, Aggregate):
            raise ValueError(f"of: {self.of!r} has recorded answers itself; name the original")
        if original.play is not Env.play:
            raise ValueError(
                f"of: an agent plays {self.of!r}, and what it leaves is no text to aggregate"
            )
        settings_of(original, self.config)
        return self

    def original(self) -> Env:
        """A fresh instance of the original. Raises BadSettings."""
        found = find_playable(self.of)
        return made(found, settings_of(found, self.config))


class Aggregate(Env):
    """Another environment's task, with answers that were given to it."""

    name = "aggregate"
    config_type = AggregateConfig
    config: AggregateConfig

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.inner = self.config.original()
        self.reward_names = self.inner.reward_names
        self.has_user = self.inner.has_user
        self.deadlines = self.inner.deadlines
        self._turn_rewards = self.inner._turn_rewards

    @property
    def tool_owner(self) -> Env:
        """The original, whose tools the policy is offered."""
        return self.inner.tool_owner

    @property
    def turn_index(self) -> int:
        """The turn in progress, of the original too."""
        return self.inner.turn_index

    @turn_index.setter
    def turn_index(self, index: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.inner.turn_index = index

    @property
    def done(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if the original's world has ended."""
        return self.inner.done

    def probe(self) -> None:
        self.inner.probe()
        if self.config.record:  # a task that is played again brings its answers
            self._tasks("train")

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the tasks of the split, shuffled anew with every pass, in training with other answers each
        time. Raises ValueError."""
        found = self._tasks(split)
        rng = random.Random(f"{split}/{seed}")
        while True:
            for one in rng.sample(found, len(found)):
                # A held-out task is the same one in every pass.
                fixed = random.Random(json.dumps(one.data, sort_keys=True))
                train = split == "train"
                drawn = self._draw(one, rng if train else fixed, mixed=train and self.config.mixed)
                yield self.task(one.data, drawn)

    def task(self, data: JsonObject, answers: Sequence[str]) -> Task:
        """A task of this environment: the original's data with these answers. Raises ValueError."""
        if RECORDED in data:
            raise ValueError(f"a task of {self.config.of!r} has {RECORDED!r} in its own data")
        return Task(self.name, {**data, RECORDED: list(answers)})

    def _draw(self, one: AnsweredTask, rng: random.Random, *, mixed: bool) -> list[str]:
        """K of its answers, shuffled; mixed: right and wrong ones."""
        chosen = rng.sample(one.answers, self.config.answers)
        if mixed and not _mixed(chosen):
            other = [answer for answer in one.answers if answer.right != chosen[0].right]
            chosen[rng.randrange(len(chosen))] = rng.choice(other)
        return [answer.text for answer in chosen]

    def _tasks(self, split: Split) -> list[AnsweredTask]:
        """The tasks of a split that have enough answers. Raises ValueError."""
        config = self.config
        if not config.record:
            raise ValueError(
                'record: name a run or an evaluation, such as record = "runs/thinkers"'
            )
        source = config.heldout if split == "heldout" and config.heldout else config.record
        record = read_record(source, self.inner.name)
        if not record.judged:
            raise ValueError(f"record {source!r} has no judged episode of {self.inner.name!r}")
        answered = [one for one in record.tasks if one.answers]
        if not answered:
            raise ValueError(
                f"record {source!r} has {record.judged} judged episodes of {self.inner.name!r}, and none "
                "ends with a text of the policy: tools or limits end them, so there is no answer to aggregate"
            )
        most = max(len(one.answers) for one in answered)
        enough = [one for one in answered if len(one.answers) >= config.answers]
        found = (
            enough
            if config.heldout
            else [one for one in enough if self._is_in(one, record.tasks, split)]
        )
        if split == "train" and config.mixed:
            found = [one for one in found if _mixed(one.answers)]
        if not found:
            kind = "right and wrong ones among " if split == "train" and config.mixed else ""
            raise ValueError(
                f"record {source!r} has no {split} task with {kind}{config.answers} answers: there are "
                f"{len(answered)} tasks with answers, up to {most} of one; change `answers`"
                + (" or set mixed = false" if kind else "")
            )
        return found

    def _is_in(self, one: AnsweredTask, every: Sequence[AnsweredTask], split: Split) -> bool:
        if len({task.evaluated for task in every}) == 2:
            return one.evaluated == (split == "heldout")
        return Task(self.inner.name, one.data).split == split

    async def reset(self, task: Task) -> list[Message]:
        self.inner.user = self.user  # the session has put in its place who plays
        said = list(await self.inner.reset(self._original(task)))
        self.notes = self.inner.notes
        answers: list[str] = task.data.get(RECORDED, [])
        if not answers:  # nobody answered: the task as it is
            return said
        shown = "\n\n".join(f"[{n}] {answer}" for n, answer in enumerate(answers, 1))
        before, after = self.config.template.split("{answers}")
        asked = [i for i, message in enumerate(said) if message.role == "user"]
        if not asked:
            return [*said, Message("user", f"{before}{shown}{after}".strip())]
        last = said[asked[-1]]
        said[asked[-1]] = Message("user", f"{last.content}{before}{shown}{after}")
        return said

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        return await self.inner.dynamic_tools()

    async def reply(self, text: str) -> Reply:
        return await self.inner.reply(text)

    async def score(self) -> Mapping[str, float | Mapping[int, float]]:
        return await self.inner.score()

    async def close(self) -> None:
        await self.inner.close()

    def expert(self, task: Task) -> Expert:
        return self.inner.expert(self._original(task))

    def _original(self, task: Task) -> Task:
        data: dict[str, Any] = {n: v for n, v in task.data.items() if n != RECORDED}
        return Task(self.inner.name, data)


def _mixed(answers: Sequence[RecordedAnswer]) -> bool:
    return len({answer.right for answer in answers}) == 2
