"""One episode's environment, run under deadlines, with every fault put in its class.

Flows in: a task, then tool calls or plain replies. Flows out: messages for the policy, named rewards.
Refuses: to let an environment's fault look like the policy's. What the policy did wrong comes back to
it as a tool message that begins with `error:`; what the environment did wrong is raised as EnvFault
with the first traceback kept.
"""

import asyncio
import contextlib
import inspect
import math
import pickle
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

from envs.agents.access import ModelAccess
from envs.containment import closed_from_outside, contain_exits
from envs.deadline import counting
from envs.dynamic_tool import AnyTool, DynamicTool
from envs.env import Deadlines, Env, Reply, Task
from envs.expert import ExpertMistake, watched
from envs.handover import (
    NamedRewards,
    episode_rewards,
    facts,
    messages,
    offered_tools,
    result_of,
)
from envs.message import Message, ToolCall, ToolSchema
from envs.model_user import ModelUser
from envs.noise import CLARIFY, Noise, persistent
from envs.text import encodable, shown, told
from envs.tool import ToolError, tools_of
from envs.tool_result import LongNumber, result_text
from envs.user import User, UserFault

T = TypeVar("T")
FaultKind = Literal["reset", "tool", "reply", "agent", "score", "close", "timeout"]
# Latency that noise adds to a call comes before its deadline begins, and is at most this share of it.
LATENCY_SHARE = 0.1
# Sets of tools that a process keeps.
MOST_TOOLS = 256
# Characters of an agent's own log that are kept with its trajectory.
MOST_LOG = 100_000


class EnvFault(Exception):
    """The environment failed (not the policy): which act, in one sentence, and the first traceback."""

    def __init__(self, kind: FaultKind, sentence: str, trace: str = "") -> None:
        sentence, trace = encodable(sentence), encodable(trace)
        super().__init__(kind, sentence, trace)
        self.kind: FaultKind = kind
        self.sentence = sentence
        self.trace = trace

    def __str__(self) -> str:
        return self.sentence


class HostFault(Exception):
    """The process that ran the environment, or a server that it needs, died or did not answer, or its machine
    lacks what it needs: infrastructure.

    An environment that speaks to a server may raise it from any of its acts.
    """


@dataclass(frozen=True)
class Opening:
    """The opening that the policy sees first; `notes` are facts for the record, such as {"sandbox":
    "bubblewrap"}. agent: the model's name for the agent that plays; "" where none does."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSchema, ...]
    notes: dict[str, str] = field(default_factory=dict[str, str])
    agent: str = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what came over a wire. Most episodes have the tools of others, and copies would be most of
        their memory."""
        self.__dict__.update(state, tools=_same_tools(pickle.dumps(state["tools"])))


@lru_cache(MOST_TOOLS)
def _same_tools(pickled: bytes) -> tuple[ToolSchema, ...]:
    return pickle.loads(pickled)


@dataclass(frozen=True)
class StepResult:
    """The environment's messages in reply to one turn of the policy."""

    messages: tuple[Message, ...]
    done: bool
    bad_calls: int = 0


class EnvSession:
    """Runs one `Env` through one episode: `open`, `step` until done, `score`, `close`.

    noise_events: what noise did, in order; empty where the task has none. Every act may raise UserFault where
    a model plays the user.
    """

    def __init__(self, env: Env, deadlines: Deadlines, user: User | None = None) -> None:
        """user: who plays the environment's; None for the script."""
        self.env = env
        self.deadlines = deadlines
        if user is not None:
            env.user = user
        self.tools: dict[str, AnyTool] = dict(tools_of(type(env.tool_owner)))
        self.noise: Noise | None = None
        self.noise_events: list[str] = []
        # The act in progress: the task that awaits it, and what is set when it has ended.
        self._acting: tuple[asyncio.Task[Any], asyncio.Event] | None = None
        self._closing = False

    async def open(self, task: Task) -> Opening:
        """Reset the environment. Raises EnvFault, and HostFault where the machine is at fault."""
        contain_exits()
        self.env.turn_index = -1
        said, notes = await self._guard("reset", self.deadlines.reset_seconds, self._reset(task))
        if task.noise:
            slowest = self.deadlines.tool_seconds * LATENCY_SHARE
            self.noise = Noise(task, self.tools, self.noise_events, slowest)
            said = self.noise.opening(said)
            if self.noise.clarifies:
                self.tools = {**self.tools, CLARIFY.name: CLARIFY}
        schemas = tuple(t.schema for t in self.tools.values())
        return Opening(said, schemas, notes, self.env.served_model)

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> StepResult:
        """One turn of the policy: its calls in order, or, without any, its plain text.

        Raises EnvFault where the environment failed or did not answer in time, HostFault where a server
        that it needs is gone.
        """
        self.env.turn_index += 1
        if not calls:
            return await self._guard("reply", self.deadlines.tool_seconds, self._reply(text))
        results: list[Message] = []
        bad = 0
        for one in calls:
            try:
                if self._over():
                    raise ToolError("the episode is over")
                content = await self._call(one)
            except ToolError as error:
                content, bad = f"error: {error}", bad + 1
            results.append(Message("tool", content, name=one.name))
        return StepResult(tuple(results), done=self._over(), bad_calls=bad)

    async def play(self, access: ModelAccess) -> str:
        """Let the environment's agent play to its end: when that is too late, who asks knows, and closes.

        Returns the last part of its log. Raises EnvFault.
        """
        said = await self._guard(
            "agent", math.inf, result_of("play", lambda: self.env.play(access))
        )
        return encodable(str(said))[-MOST_LOG:]

    async def score(self) -> NamedRewards:
        """The environment's named rewards, and which parts of them turns have earned. Raises EnvFault."""
        return await self._guard("score", self.deadlines.score_seconds, self._score())

    async def close(self) -> None:
        """Close the environment. Raises EnvFault.

        The episode may have been given up in the middle of an act. That is cancelled first: a reset that
        went on would take what nobody gives back.
        """
        self._closing = True
        try:
            if self._acting is not None:
                act, ended = self._acting
                act.cancel()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.deadlines.close_seconds):
                        await ended.wait()
        finally:  # also where whoever closes is cancelled while an act will not end
            act = result_of("close", self.env.close)
            await self._guard("close", self.deadlines.close_seconds, act)

    async def _reset(self, task: Task) -> tuple[tuple[Message, ...], dict[str, str]]:
        said = messages(await result_of("reset", lambda: self.env.reset(task)), "reset()")
        for tool in offered_tools(await result_of("dynamic_tools", self.env.dynamic_tools)):
            if tool.name in self.tools:
                raise ValueError(f"two tools are called {tool.name!r}")
            self.tools[tool.name] = tool
        return said, facts(self.env.notes)

    def _user_fault(self) -> UserFault | None:
        """The fault of a user, whatever the environment has made of it."""
        return self.env.user.fault if isinstance(self.env.user, ModelUser) else None

    async def _reply(self, text: str) -> StepResult:
        reply = await result_of("reply", lambda: self.env.reply(text))
        if not isinstance(reply, Reply):
            raise TypeError(
                f"reply() has to return a Reply, not {shown(reply)}: write Reply(done=True)"
            )
        return StepResult(messages(reply.messages, "reply()"), bool(reply.done))

    def _over(self) -> bool:
        try:
            return bool(self.env.done)
        except Exception as error:  # a property of the author's, or an array
            sentence = f"environment {self.env.name!r}, done: {told(error)}"
            raise EnvFault("tool", sentence, traceback.format_exc()) from None

    async def _call(self, one: ToolCall) -> str:
        tool = self.tools.get(one.name)
        if tool is None:
            raise ToolError(f"no tool {one.name!r}")
        arguments = self._parse(tool, one)
        if self.noise is None:
            return await self._execute(tool, arguments)
        # What noise answers in the tool's place is no refusal: the policy did nothing wrong.
        return await self.noise.call(tool, arguments, lambda: self._execute(tool, arguments))

    def _parse(self, tool: AnyTool, one: ToolCall) -> dict[str, Any]:
        try:
            return tool.parse(one.arguments)
        except ToolError:
            raise
        except Exception as error:  # a schema of others can be wrong in any way
            where = f"environment {self.env.name!r}, tool {tool.name!r}"
            sentence = f"{where}: its arguments cannot be read: {told(error)}"
            raise EnvFault("tool", sentence, traceback.format_exc()) from None

    async def _execute(self, tool: AnyTool, arguments: dict[str, Any]) -> str:
        if self._closing:  # while noise delayed the call, or an act before it would not end
            raise EnvFault(
                "tool",
                f"environment {self.env.name!r}: the episode was closed before {tool.name!r}",
            )
        limit = self.deadlines.tool_seconds
        return await self._guard("tool", limit, self._run_in_time(tool, arguments), tool.name)

    async def _run_in_time(self, tool: AnyTool, arguments: dict[str, Any]) -> str:
        """The tool's own limit is part of its world: the policy reads of it and goes on."""
        deadline = asyncio.timeout(tool.options.seconds)
        try:
            async with deadline:
                with counting(deadline):
                    return await self._run(tool, arguments)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise ToolError(f"{tool.name}: no answer within {tool.options.seconds:g} s") from None

    async def _run(self, tool: AnyTool, arguments: dict[str, Any]) -> str:
        if isinstance(tool, DynamicTool):
            result: object = await tool.call(arguments)
        elif tool.is_async:
            result = tool.run(self.env.tool_owner, arguments)
        else:
            result = await _in_daemon_thread(lambda: tool.run(self.env.tool_owner, arguments))
        while inspect.isawaitable(result):  # also where a method hands back a client's call
            result = await result
        try:
            return result_text(result)
        except LongNumber as error:  # the policy made it so: a fault would spare it its reward
            raise ToolError(f"{tool.name}: {error}") from None

    async def _score(self) -> NamedRewards:
        found = await result_of("score", self.env.score)
        given = self.env._turn_rewards  # pyright: ignore[reportPrivateUsage]
        return episode_rewards(found, given, self.env.turn_index + 1)

    async def _guard(self, kind: FaultKind, limit: float, act: Awaitable[T], detail: str = "") -> T:
        where = f"environment {self.env.name!r}, {kind}" + (f" {detail!r}" if detail else "")
        deadline = asyncio.timeout(limit)
        task, ended = asyncio.current_task(), asyncio.Event()
        assert task is not None, "asyncio.timeout needs a task as well"
        cancels = task.cancelling()
        self._acting = (task, ended)
        try:
            async with deadline:
                with counting(deadline):
                    found = await act
            if kind != "close" and (fault := self._user_fault()) is not None:
                raise fault
            return found
        except asyncio.CancelledError:
            if task.cancelling() == cancels:  # nobody asked: what it waited for was cancelled
                trace = traceback.format_exc()
                raise EnvFault(kind, f"{where}: it raised CancelledError", trace) from None
            # `close` asked for one; whoever asked for another one gets it.
            if not self._closing or kind == "close" or task.uncancel() > cancels:
                raise
            raise EnvFault(kind, f"{where}: the episode was closed in the middle of it") from None
        except (
            BaseException
        ) as error:  # SystemExit, or what a foreign runtime raises, would end the host
            if isinstance(error, GeneratorExit) and closed_from_outside(task):
                raise  # nobody is left to answer
            if isinstance(error, TimeoutError) and deadline.expired():
                sentence = f"{where}: no answer within {limit:g} s"
                raise EnvFault("timeout", sentence) from None
            if kind != "close" and (fault := self._user_fault()) is not None:
                raise fault from None
            if isinstance(error, HostFault | UserFault) or (
                isinstance(error, ToolError) and kind == "tool"
            ):
                raise
            trace = traceback.format_exc()
            raise EnvFault(kind, f"{where}: {told(error)}", trace) from None
        finally:
            self._acting = None
            ended.set()


async def _in_daemon_thread(act: Callable[[], T]) -> T:
    """Run a blocking tool in a thread of its own.

    A tool that never returns costs one daemon thread, and not a place in a pool that every later
    episode would then wait for.
    """
    loop = asyncio.get_running_loop()
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = asyncio.Event()

    def run() -> None:
        try:
            outcome.append(act())
        except BaseException as error:  # raised again below, in the episode that asked
            failure.append(error)
        # After the deadline nobody waits any more, and the loop may be gone with its episode.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, daemon=True, name="dorado-tool").start()
    await done.wait()
    if failure:
        raise failure[0]
    return outcome[0]


async def demonstrate(
    env: Env, task: Task, alter: Callable[[Message, Opening], Message] | None = None
) -> tuple[Opening, list[Message], NamedRewards]:
    """Let the environment's expert play a task; `alter` may change what it is about to say.

    Where the task is noisy, the expert is `envs.noise.persistent`.

    Returns the opening, the messages after it (the expert's and the environment's), the rewards.
    """
    session = EnvSession(env, env.deadlines)
    said: list[Message] = []
    try:
        opening = await session.open(task)
        expert = watched(lambda: env.expert(task))
        if session.noise is not None:
            expert = persistent(expert, session.noise.level, session.tools)
        message = next(expert, None)
        while message is not None:
            if alter is not None:
                message = alter(message, opening)
            said.append(message)
            result = await session.step(message.content, message.tool_calls)
            said.extend(result.messages)
            if result.done:
                return opening, said, await session.score()
            try:
                message = expert.send([m.content for m in result.messages])
            except StopIteration:
                message = None
        raise EnvFault("reply", f"environment {env.name!r}: its expert ended without an answer")
    except ExpertMistake as mistake:
        raise EnvFault("reply", f"environment {env.name!r}: {mistake}", mistake.trace) from None
    finally:
        await session.close()
