"""Runs one environment for a check: each act under the watch, each fault as a finding.

Flows in: a `Spec`. Flows out, as lines of JSON to a file descriptor: what is being done, findings. The checks
themselves are in `rl.env_tools.check.checks`.
"""

import json
import os
import traceback
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from envs.env import Env, EnvConfig, Task
from envs.message import JsonObject, Message
from envs.registry import UnknownEnv, find_env, settings_of
from envs.session import Deadlines, EnvFault, EnvSession, HostFault
from envs.tool_arguments import ToolMistake
from rl.env_tools.check.clock import Clock
from rl.env_tools.check.portable import unpicklable
from rl.env_tools.check.report import CheckName, Finding
from rl.env_tools.check.transcript import Episode
from rl.env_tools.check.watchdog import Watch

T = TypeVar("T")
Role = Literal["plays", "again", "later"]
Moves = Literal["expert", "empty", "silent"]
# How far the clock of role `later` is ahead at the start, and how much it gains after every act.
AHEAD_SECONDS, GAIN_SECONDS = 40 * 86400 + 7 * 3600 + 801.5, 61.25
MOST_TURNS = 1000


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
        self.env_class, self.config = self._find()
        self.has_expert = self.env_class.expert is not Env.expert
        self.state_pickled = False

    def _find(self) -> tuple[type[Env], EnvConfig]:
        """Raises UnknownEnv, BadSettings, and Broken where the class's tools cannot be offered."""
        self.doing("importing it")
        with self.watch.during("importing it", measured=False):
            try:
                env_class = find_env(self.spec.name)
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
        send(self.spec.findings_fd, {"finding": asdict(Finding(check, "fail", sentence, detail))})

    def settle(self, *checks: CheckName) -> None:
        """Report these as checked in full: passed where nothing failed."""
        for check in checks:
            send(self.spec.findings_fd, {"finding": asdict(Finding(check, "pass"))})

    def skip(self, check: CheckName, why: str) -> None:
        send(self.spec.findings_fd, {"finding": asdict(Finding(check, "skip", why))})

    # Acts

    async def act(self, label: str, act: Awaitable[T], seconds: float | None = None) -> T:
        """Await an act of the environment and return its result. Raises EnvFault, and Broken where the
        machine is at fault."""
        self.doing(label)
        try:
            with self.watch.during(label, seconds=seconds):
                return await act
        except HostFault as fault:
            self.fail("acts", f"{label}: this machine lacks what it needs: {fault}")
            raise Broken from None
        finally:
            self.clock.advance(GAIN_SECONDS if self.spec.role == "later" else 0.0)

    def make(self) -> Env:
        self.doing("creating it")
        try:
            with self.watch.during("creating it", measured=False):
                return self.env_class(self.config)
        except Exception as error:
            name = self.env_class.__name__
            self.fail("acts", f"{name}(config) raises {told(error)}", traceback.format_exc())
            raise Broken from None

    async def episode(self, task: Task, moves: Moves) -> Episode:
        """Play a task and close its environment. Raises Broken."""
        env = self.make()
        session = EnvSession(env, self.deadlines)
        said: list[Message] = []
        try:
            opening = await self.act("reset()", session.open(task))
            self.pickle_state(env)
            if moves == "expert":
                await self.let_expert_play(session, task, said)
            elif moves == "empty":
                await self.say_nothing(session, said)
            rewards = await self.act("score()", session.score())
        except EnvFault as fault:
            self.fault(fault, task)
            raise Broken from None
        finally:
            await self.close(session, "close()")
        self.hold_to_range(rewards)
        return Episode(
            [message.as_chat() for message in opening.messages],
            [message.as_chat() for message in said],
            rewards,
        )

    async def let_expert_play(self, session: EnvSession, task: Task, said: list[Message]) -> None:
        try:
            expert = session.env.expert(task)
            results: list[str] | None = None
            for _ in range(MOST_TURNS):
                with self.watch.during("expert()", measured=False):
                    message = next(expert) if results is None else expert.send(results)
                said.append(message)
                step = session.step(message.content, message.tool_calls)
                result = await self.act(called(message), step)
                said.extend(result.messages)
                if result.done:
                    return
                results = [one.content for one in result.messages]
            self.fail("expert", f"the expert made {MOST_TURNS} turns and no answer: end with say()")
        except StopIteration:
            self.fail(
                "expert", "the expert ended without an answer: its last message has to be say()"
            )
        except (EnvFault, Broken):
            raise
        except Exception as error:
            self.fail("expert", f"expert() raises {told(error)}", traceback.format_exc())
            raise Broken from None

    async def say_nothing(self, session: EnvSession, said: list[Message]) -> None:
        for _ in range(3):
            result = await self.act("reply()", session.step("", ()))
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

    def fault(self, fault: EnvFault, task: Task) -> None:
        if fault.kind == "timeout":
            self.fail(
                "deadlines",
                f"{_after_name(fault)}: give what it waits for a limit below that, or set the "
                f"environment's deadline higher (task {shown(task)})",
            )
            return
        hint = "raise ToolError for what the policy did wrong" if fault.kind == "tool" else ""
        if fault.kind == "score":
            hint = "self.answer is None where the policy never answered"
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
    return json.dumps(task.data, ensure_ascii=False, default=str)[:120]


def told(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def called(message: Message) -> str:
    """Name what the environment does next, e.g. `tool 'add'`."""
    return ", ".join(f"tool {call.name!r}" for call in message.tool_calls) or "reply()"


def _after_name(fault: EnvFault) -> str:
    return str(fault).partition(", ")[2]


def _after_colon(fault: EnvFault) -> str:
    return str(fault).partition(": ")[2]
