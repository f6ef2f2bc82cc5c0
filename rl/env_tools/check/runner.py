"""Runs one environment for a check: each act under the watch, each fault as a finding.

Flows in: a `Spec`. Flows out, as lines of JSON to a file descriptor: what is being done, findings. The checks
themselves are in `rl.env_tools.check.checks`.
"""

import asyncio
import json
import os
import traceback
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from envs.env import Env, EnvConfig, Task
from envs.expert import ExpertMistake, watched
from envs.handover import full_reward
from envs.message import JsonObject, Message
from envs.registry import BadSettings, UnknownEnv, find_playable, made, settings_of
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, Opening, StepResult
from envs.text import told
from envs.tool import Tool, ToolError
from envs.tool_arguments import ToolMistake
from rl.env_tools.check.clock import Clock
from rl.env_tools.check.portable import unpicklable
from rl.env_tools.check.report import CheckName, Finding
from rl.env_tools.check.transcript import Episode
from rl.env_tools.check.watchdog import Watch

T = TypeVar("T")
Role = Literal["plays", "again", "later"]
Moves = Literal["expert", "empty", "silent", "odd", "slip", "unknown"]
# How far the clock of role `later` is ahead at the start, and how much it gains after every act.
AHEAD_SECONDS, GAIN_SECONDS = 40 * 86400 + 7 * 3600 + 801.5, 61.25
MOST_TURNS = 1000
_SHOWN = 120


@dataclass(frozen=True)
class Spec:
    """One run of the checks in one process.

    role: `plays` checks everything; `again` and `later` only play the same tasks, in a process whose
    hashes differ, and in one whose clock is ahead. folder: for temporary files. findings_fd: the file
    descriptor to write to.
    """

    name: str
    config: JsonObject
    role: Role
    seconds: float
    folder: str
    findings_fd: int


class Broken(Exception):
    """Nothing more can be checked; a finding says why."""


class Runner:
    """Runs one environment and reports findings."""

    def __init__(self, spec: Spec, clock: Clock, watch: Watch) -> None:
        self.spec = spec
        self.clock = clock
        self.watch = watch
        self.folder = Path(spec.folder)
        self.deadlines = Deadlines(*[spec.seconds] * 4)
        # What sentences begin with, such as `at difficulty 2, `.
        self.where = ""
        self.env_class, self.config = self._find()
        self.has_expert = self.env_class.expert is not Env.expert
        self.state_pickled = False
        self.was_made = False
        self.turn = asyncio.Lock()
        # True once an episode offered a tool.
        self.has_tools = False
        # True once an episode was one that an agent plays.
        self.has_agent = False

    def _find(self) -> tuple[type[Env], EnvConfig]:
        """Raises UnknownEnv, BadSettings, and Broken where the class's tools cannot be offered."""
        self.doing("importing it")
        with self.watch.during("importing it", measured=False):
            try:
                env_class = find_playable(self.spec.name)
            except UnknownEnv as error:
                mistake = error.__context__
                if not isinstance(mistake, ToolMistake):
                    raise
                self.fail("tools", str(mistake))
                raise Broken from None
            return env_class, settings_of(env_class, self.spec.config)

    # What is reported

    def doing(self, act: str) -> None:
        send(self.spec.findings_fd, {"doing": act})

    def fail(self, check: CheckName, sentence: str, detail: str = "") -> None:
        found = Finding(check, "fail", self.where + sentence, detail)
        send(self.spec.findings_fd, {"finding": asdict(found)})

    def settle(self, *checks: CheckName, but: str = "") -> None:
        """Report these as checked: passed where nothing failed. but: what was not looked at."""
        for check in checks:
            send(self.spec.findings_fd, {"finding": asdict(Finding(check, "pass", but))})

    def skip(self, check: CheckName, why: str) -> None:
        send(self.spec.findings_fd, {"finding": asdict(Finding(check, "skip", why))})

    # Acts

    async def act(self, label: str, act: Awaitable[T], seconds: float | None = None) -> T:
        """Await an act of the environment and return its result. Raises EnvFault, and Broken where the
        machine is at fault."""
        try:
            # Of two episodes at once, an act of one comes after an act of the other.
            await asyncio.sleep(0)
            async with self.turn:
                self.doing(label)
                with self.watch.during(label, seconds=seconds):
                    return await act
        except HostFault as fault:
            self.fail("acts", f"{label}: this machine lacks what it needs: {fault}")
            raise Broken from None
        finally:
            self.clock.advance(GAIN_SECONDS if self.spec.role == "later" else 0.0)

    def make(self) -> Env:
        """A fresh instance. Raises BadSettings where the first one cannot be made, later Broken."""
        self.doing("creating it")
        try:
            with self.watch.during("creating it", measured=False):
                env = made(self.env_class, self.config)
        except BadSettings as error:
            if not self.was_made:
                raise BadSettings(f"environment {self.spec.name!r}: {error}") from None
            self.fail("acts", f"a further instance: {error}", traceback.format_exc())
            raise Broken from None
        self.was_made = True
        return env

    def probe(self) -> None:
        """Ask the environment to look at what its settings name. Raises BadSettings."""
        env = self.make()
        self.doing("probe()")
        try:
            with self.watch.during("probe()", measured=False):
                env.probe()
        except Exception as error:  # an author's code
            meant = isinstance(error, ValueError | HostFault)
            why = str(error) if meant else f"probe() raises {told(error)}"
            raise BadSettings(f"environment {self.spec.name!r}: {why}") from None

    async def episode(self, task: Task, moves: Moves, text: str = "") -> Episode:
        """Play a task and close its environment. text: the answer of `odd`.

        Raises Broken, and EnvFault for moves that ask for trouble.
        """
        session = EnvSession(self.make(), self.deadlines)
        said: list[Message] = []
        given = json.dumps(task.data, sort_keys=True)
        try:
            opening = await self.act("reset()", session.open(task))
            self.look_at(opening, session)
            match moves:
                case "expert" | "slip" | "unknown":
                    await self.let_expert_play(session, task, said, moves)
                case "empty" | "odd":
                    await self.say(session, said, text)
                case "silent":
                    pass
            rewards = await self.act("score()", session.score())
        except EnvFault as fault:
            if moves not in ("expert", "empty", "silent"):
                raise
            silent = moves == "silent" and fault.kind == "score"
            hint = "self.answer is None where the policy never answered" if silent else ""
            self.fault(fault, task, hint)
            raise Broken from None
        finally:
            await self.close(session, "close()")
        if json.dumps(task.data, sort_keys=True) != given:
            self.fail(
                "determinism",
                f"an episode changes its task's data, {given[:_SHOWN]}, which its whole group plays: copy "
                "what you change, say with copy.deepcopy(task.data)",
            )
        self.hold_to_range(rewards)
        return Episode(
            [message.as_chat() for message in opening.messages],
            [message.as_chat() for message in said],
            rewards,
        )

    def look_at(self, opening: Opening, session: EnvSession) -> None:
        """Raises Broken where the policy would be asked nothing."""
        self.pickle_state(session.env)
        self.has_tools = self.has_tools or bool(opening.tools)
        self.has_agent = self.has_agent or bool(opening.agent)
        if not any(message.content.strip() for message in opening.messages):
            self.fail(
                "acts",
                'reset() returns no word for the policy: return [Message("user", "...")] with what the task '
                "asks for",
            )
            raise Broken

    async def let_expert_play(
        self, session: EnvSession, task: Task, said: list[Message], moves: Moves
    ) -> None:
        """Raises Broken where the expert cannot go on. After a slip it may fail, but not break."""
        before = "" if moves == "expert" else "after a wrong call, "
        slips = bool(before)
        expert = watched(lambda: session.env.expert(task))
        results: list[str] | None = None
        try:
            for _ in range(MOST_TURNS):
                with self.watch.during("expert()", measured=False):
                    message = next(expert) if results is None else expert.send(results)
                if slips and message.tool_calls:
                    message, slips = slipped(message, session, moves), False
                elif not before:
                    self.hold_to_tools(message, session)
                said.append(message)
                step = session.step(message.content, message.tool_calls)
                result = await self.act(called(message), step)
                said.extend(result.messages)
                self.hold_to_results(message, result, session)
                if result.done:
                    return
                results = [one.content for one in result.messages]
            sentence = f"the expert made {MOST_TURNS} turns and no answer: end with say()"
        except StopIteration:
            sentence = "the expert ended without an answer: its last message has to be say()"
            if any(one.role == "assistant" and not one.tool_calls for one in said):
                sentence = (
                    "reply() goes on after the expert's last answer: return Reply(done=True) there, or let "
                    "expert() answer what reply() says"
                )
        except ExpertMistake as mistake:
            self.fail("expert", f"{before}{mistake}", mistake.trace)
            raise Broken from None
        self.fail("expert", before + sentence)

    def hold_to_tools(self, message: Message, session: EnvSession) -> None:
        """The expert calls tools that there are, with arguments that they take."""
        for one in message.tool_calls:
            tool = session.tools.get(one.name)
            if tool is None:
                known = ", ".join(session.tools) or "none"
                self.fail("expert", f"the expert calls {one.name!r}, and the tools are {known}")
                continue
            try:
                tool.parse(one.arguments)
            except ToolError as error:
                self.fail("expert", f"the expert's call is refused: {error}")
            except Exception:  # the session says whose fault it is
                return

    def hold_to_results(self, message: Message, result: StepResult, session: EnvSession) -> None:
        """A tool that says nothing of it gives a result."""
        for one, answer in zip(message.tool_calls, result.messages, strict=False):
            tool = session.tools.get(one.name)
            if answer.content == "None" and isinstance(tool, Tool) and not tool.may_be_none:
                self.fail(
                    "tools",
                    f"tool {one.name!r} returned None, which the policy reads as a word: return what came "
                    "of the call, or write `-> None`",
                )

    async def say(self, session: EnvSession, said: list[Message], text: str) -> None:
        for _ in range(3):
            result = await self.act("reply()", session.step(text, ()))
            said.extend(result.messages)
            if result.done:
                return

    async def close(self, session: EnvSession, when: str) -> None:
        try:
            await self.act("close()", session.close())
        except EnvFault as fault:
            self.fail(
                "close",
                f"{when}: {_after_colon(fault)}; release what there is, whatever happened before, "
                "and give what close() reads a default on the class",
                fault.trace,
            )

    def fault(self, fault: EnvFault, task: Task, hint: str = "") -> None:
        """Report what an episode of this task failed at; `hint` says what to do, unless the act does."""
        if fault.kind == "timeout":
            self.fail(
                "deadlines",
                f"{_after_name(fault)}: give what it waits for a limit below that, or set the "
                f"environment's deadline higher (task {shown(task)})",
            )
            return
        if fault.kind == "tool":
            hint = "raise ToolError for what the policy did wrong"
        sentence = f"{_after_name(fault)} (task {shown(task)})" + (f"; {hint}" if hint else "")
        self.fail("acts", sentence, fault.trace)

    def hold_to_range(self, rewards: dict[str, float]) -> None:
        least, most = self.env_class.reward_range
        for name, value in rewards.items():
            if not least <= value <= most:
                self.fail(
                    "range",
                    f"reward {name!r} was {value:g}, and reward_range is ({least:g}, {most:g}): scale "
                    "the reward, or declare its range as reward_range on the class",
                )

    def pickle_state(self, env: Env) -> None:
        if self.state_pickled:
            return
        self.state_pickled = True
        for name, value in vars(env).items():
            reason = unpicklable(value)
            if reason is not None:
                self.fail(
                    "pickle",
                    f"self.{name} cannot be pickled after reset(): {reason}; keep plain data there, "
                    "or a handle that close() lets go",
                )


def send(findings_fd: int, line: JsonObject) -> None:
    """One line to the process that watches."""
    os.write(findings_fd, (json.dumps(line) + "\n").encode())


def shown(task: Task) -> str:
    """A task for a sentence."""
    return json.dumps(task.data, ensure_ascii=False, default=str)[:_SHOWN]


def full(rewards: dict[str, float]) -> bool:
    """True where an evaluation counts the episode as passed."""
    return full_reward(rewards.get("solved", sum(rewards.values())))


def slipped(message: Message, session: EnvSession, moves: Moves) -> Message:
    """The message with a wrong call in place of its first: of another tool that takes the arguments
    (`slip`), or else of one that there is not."""
    first = message.tool_calls[0]
    others = [
        name
        for name, tool in session.tools.items()
        if name != first.name
        and set(tool.schema.parameters.get("properties", {})) == set(first.arguments)
    ]
    name = others[0] if others and moves == "slip" else f"no_{first.name}"
    return replace(message, tool_calls=(replace(first, name=name), *message.tool_calls[1:]))


def called(message: Message) -> str:
    """Name what the environment does next, e.g. `tool 'add'`."""
    return ", ".join(f"tool {call.name!r}" for call in message.tool_calls) or "reply()"


def _after_name(fault: EnvFault) -> str:
    return str(fault).partition(", ")[2]


def _after_colon(fault: EnvFault) -> str:
    return str(fault).partition(": ")[2]
