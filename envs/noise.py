"""Noise around an environment: what users and tools do to an agent outside a laboratory.

After LongCat-Flash-Thinking-2601, section 3.3.3. Flows in: a task with `noise` 1 to 3, the environment's
opening, its tools and their answers. Flows out: the opening as a hasty user writes it (that half is
`envs.instruction_noise`), and answers that come late, cut, wrong, or only when asked again. All of it is
seeded by the task and the number of the call, so that the trajectories of a group meet the same.

What noise may do is bounded, so that no task becomes unsolvable:
1. A call that fails is not executed, and a tool fails at most `failures_in_row` times in a row.
2. Only a `read_only` tool's answers are cut or wrong, at most `spoiled_in_row` times in a row for the same
   call; then two answers are right.
3. A wrong answer never equals the answer given before it to the same call, the right ones included. So when
   two successive answers to a call agree, the second is right.
4. Words that carry the task are kept. Where a clause may be withheld, the tool `clarify` tells all of the
   request.

Left out: noise on what an environment says after its opening; and of tools that change something, any but
failures and latency. What the environment itself does wrong stays as it is: its ToolErrors and its faults
pass through unchanged.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from envs.dynamic_tool import AnyTool
from envs.env import Expert, Task, call
from envs.instruction_noise import add_redundant, add_typos, load_bearing, paraphrase, withhold
from envs.message import JsonObject, Message, ToolCall
from envs.tool import tool, tools_of

FAILURES = (
    "error: no connection, try again",
    "error: service busy, try again",
    "error: call was not taken, try again",
)
PARTIAL = " [cut, try again]"


@dataclass(frozen=True)
class NoiseLevel:
    """How much noise. Of an opening's user messages, the share that is put into other words (`paraphrase`),
    is given a sentence that does not matter (`redundant`), lacks a clause (`withheld`, the last message
    alone); `typos` is the share of the free words. Of the calls, the share that fails, whose answer is cut
    (`partial`) or wrong (`inconsistent`), and that waits up to `slow_seconds` (`slow`); bounds on what
    follows each other make the shares of failures and spoiled answers a little smaller.
    """

    paraphrase: float
    typos: float
    failure: float
    failures_in_row: int
    slow: float
    slow_seconds: float
    redundant: float = 0.0
    partial: float = 0.0
    withheld: float = 0.0
    inconsistent: float = 0.0
    spoiled_in_row: int = 0

    @property
    def most_calls(self) -> int:
        """So often, at most, a call is made until it was executed and its answer is known to be right."""
        answers = self.spoiled_in_row + 3 if self.inconsistent else self.spoiled_in_row + 1
        return answers * (self.failures_in_row + 1)


# Mild, moderate, severe. LongCat states the kinds and that they grow in number and strength, but no figures:
# these are our own choice.
LEVELS = {
    1: NoiseLevel(
        paraphrase=0.3, typos=0.05, failure=0.05, failures_in_row=1, slow=0.1, slow_seconds=0.02
    ),
    2: NoiseLevel(
        paraphrase=0.5, typos=0.1, failure=0.15, failures_in_row=2, slow=0.2, slow_seconds=0.05,
        redundant=0.4, partial=0.1, spoiled_in_row=1,
    ),
    3: NoiseLevel(
        paraphrase=0.7, typos=0.2, failure=0.25, failures_in_row=3, slow=0.3, slow_seconds=0.1,
        redundant=0.6, partial=0.15, withheld=0.5, inconsistent=0.15, spoiled_in_row=2,
    ),
}  # fmt: skip


@dataclass
class Answers:
    """Answers of one call so far: the answer given last (cut ones are none), the right one seen last and
    the right one before it, how many in a row were spoiled, whether the next one has to be right."""

    given: str | None = None
    right: str | None = None
    stale: str | None = None
    spoiled: int = 0
    settling: bool = False


class Noise:
    """The noise of one episode. `events` is appended to: what it did, in order."""

    def __init__(
        self, task: Task, tools: Mapping[str, AnyTool], events: list[str], most_seconds: float
    ) -> None:
        """most_seconds: the longest that latency may be."""
        self.task = task
        self.level = LEVELS[task.noise]
        self.tools = tools
        self.events = events
        self.most_seconds = most_seconds
        self.request = ""
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.answers: dict[str, Answers] = {}

    @tool(read_only=True)
    async def clarify(self) -> str:
        """the request in full"""
        return self.request

    @property
    def clarifies(self) -> bool:
        """True if the policy is offered `clarify`: at a level that withholds clauses, where a user asked.

        An environment with a tool of that name keeps its own, and nothing is withheld.
        """
        return bool(self.level.withheld and self.request) and CLARIFY.name not in self.tools

    def opening(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The opening as the policy sees it; only what the user says is changed."""
        asked = [i for i, message in enumerate(messages) if message.role == "user"]
        self.request = "\n".join(messages[i].content for i in asked)
        schemas = [offered.schema for offered in self.tools.values()]
        words = load_bearing(self.task.data, schemas, [message.content for message in messages])
        noisy = list(messages)
        for i in asked:
            rng = random.Random(f"{self.task.id}/opening/{i}")
            text = noisy[i].content
            if self.clarifies and i == asked[-1] and rng.random() < self.level.withheld:
                text = self._note("a clause withheld", text, withhold(text, words, rng))
            noisy[i] = replace(noisy[i], content=self._reword(text, words, rng))
        return tuple(noisy)

    async def call(
        self, tool: AnyTool, arguments: JsonObject, execute: Callable[[], Awaitable[str]]
    ) -> str:
        """Answer a call whose arguments fit; `execute` makes it. Raises what `execute` raises."""
        if tool is CLARIFY:
            return self.request
        self.calls[tool.name] += 1
        name = f"{tool.name} {self.calls[tool.name]}"
        rng = random.Random(f"{self.task.id}/{name}")
        fails, spoils, slow, share = (rng.random() for _ in range(4))
        if slow < self.level.slow:
            self.events.append(f"{name}: latency")
            await asyncio.sleep(min(share * self.level.slow_seconds, self.most_seconds))
        if fails < self.level.failure and self.failed[tool.name] < self.level.failures_in_row:
            self.failed[tool.name] += 1
            self.events.append(f"{name}: failure")
            return rng.choice(FAILURES)
        self.failed[tool.name] = 0
        right = await execute()
        if not tool.options.read_only or right.startswith("error:"):
            return right
        answers = self.answers.setdefault(f"{tool.name} {arguments!r}", Answers())
        kind, given = self._spoil(answers, right, spoils, rng)
        if kind:
            self.events.append(f"{name}: {kind}")
        return given

    def _reword(self, text: str, words: frozenset[str], rng: random.Random) -> str:
        """Other words, redundant detail and typing errors."""
        if rng.random() < self.level.paraphrase:
            text = self._note("paraphrase", text, paraphrase(text, words, rng))
        if rng.random() < self.level.redundant:
            text = self._note("redundant detail", text, add_redundant(text, words, rng))
        return self._note("typos", text, add_typos(text, words, self.level.typos, rng))

    def _note(self, event: str, before: str, after: str) -> str:
        if after != before:
            self.events.append(f"opening: {event}")
        return after

    def _spoil(
        self, answers: Answers, right: str, draw: float, rng: random.Random
    ) -> tuple[str, str]:
        """Draw what noise does to an answer: returns its name ("" for nothing), and the answer that is
        given."""
        level = self.level
        if answers.right is not None and answers.right != right:
            answers.stale = answers.right
        answers.right = right
        kind, given = "", right
        if not answers.settling and answers.spoiled < level.spoiled_in_row:
            if draw < level.partial and right:
                kind, given = "partial", right[: rng.randrange(len(right))].rstrip() + PARTIAL
            elif level.partial <= draw < level.partial + level.inconsistent:
                kind, given = _wrong(answers, right, rng)
        if kind:
            answers.spoiled += 1
        else:
            answers.settling, answers.spoiled = answers.spoiled > 0, 0
        if kind != "partial":
            answers.given = given
        return kind, given


CLARIFY = tools_of(Noise)["clarify"]


def persistent(expert: Expert, level: NoiseLevel, tools: Mapping[str, AnyTool]) -> Expert:
    """An expert that lives with noise, made of one that does not: `tools` are those that were offered.

    It asks for the request in full where it can, makes calls that failed again, and reads again until two
    successive answers agree. It calls one tool per message. What the environment itself answers, errors
    included, reaches the expert unchanged.
    """
    if tools.get(CLARIFY.name) is CLARIFY:
        yield call(CLARIFY.name)
    heard: dict[str, tuple[str, str]] = {}
    message = next(expert, None)
    while message is not None:
        if message.tool_calls:
            results: list[str] = []
            for one in message.tool_calls:
                content = message.content if not results else ""
                alone = replace(message, content=content, tool_calls=(one,))
                results.append((yield from _insist(alone, one, level, tools, heard)))
        else:
            results = yield message
        try:
            message = expert.send(results)
        except StopIteration:
            return


def _insist(
    message: Message,
    one: ToolCall,
    level: NoiseLevel,
    tools: Mapping[str, AnyTool],
    heard: dict[str, tuple[str, str]],
) -> Generator[Message, list[str], str]:
    """Make a call until its answer can be relied on; `heard` has each tool's last call and answer.

    An error of the environment is handed on at once, even in place of a second answer: what to do about it
    (to wait, say) is the expert's business, and its next call goes on from what was heard.
    """
    asked = json.dumps(one.arguments, sort_keys=True, default=str)
    known = tools.get(one.name)
    doubtful = bool(level.inconsistent) and known is not None and known.options.read_only
    result, failures = "", 0
    for _ in range(level.most_calls):
        (result,) = yield message
        if result in FAILURES and failures < level.failures_in_row:
            failures += 1
            continue
        failures = 0
        if level.partial and result.endswith(PARTIAL):
            continue
        if not doubtful or result.startswith("error:") or heard.get(one.name) == (asked, result):
            return result
        heard[one.name] = asked, result
    return result


def _wrong(answers: Answers, right: str, rng: random.Random) -> tuple[str, str]:
    """A stale or altered answer that differs from the right one and from the one given last."""
    tries = [answers.stale, *(_alter(right, rng) for _ in range(3))]
    for one in tries:
        if one not in (None, right, answers.given) and not one.startswith("error:"):
            return "inconsistent", one
    return "", right


def _alter(text: str, rng: random.Random) -> str:
    """The text with a digit changed; one without digits loses a line or a word; a single word stays."""
    places = [found.start() for found in re.finditer("[0-9]", text)]
    if places:
        at = rng.choice(places)
        return text[:at] + rng.choice("123456789".replace(text[at], "")) + text[at + 1 :]
    gap = "\n" if "\n" in text else " "
    parts = text.split(gap)
    dropped = rng.randrange(len(parts)) if len(parts) > 1 else len(parts)
    return gap.join(parts[:dropped] + parts[dropped + 1 :])
