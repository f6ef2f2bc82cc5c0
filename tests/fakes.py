"""Hand-written stand-ins: scripted engine and session, an environment that misbehaves, the actors of a run,
and builders of small records.
"""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.env import Env, Reply, Task
from envs.handover import NamedRewards
from envs.message import Message, ToolCall, ToolSchema
from envs.session import EnvSession, Opening
from envs.session import StepResult as TurnResult
from envs.tool import ToolError, tool
from rl.actors.engine import EngineActor
from rl.actors.handles import Actors
from rl.actors.heartbeat import Heartbeat
from rl.actors.learner import LearnerActor
from rl.actors.local_handle import local_handle
from rl.config import InitConfig, ModelConfig, RunConfig
from rl.env_table import EnvTable
from rl.loop.dispatcher import Lost, Played
from rl.record.run_folder import RunFolder, TrajectoryWriter
from rl.record.waiting import Waiting, WaitingTable, worst
from rl.samples.group import GroupReport, GroupSpec, MemberReport, member_report
from rl.samples.samples import Dropped
from rollout.engine import Completion, Request, VersionSpan
from rollout.trajectory import Phase, ScoredTrajectory, StopReason, Trajectory, Turn
from rollout.vllm_engine import LoadTimes
from trainer.sample import TrainSample
from trainer.step_result import StepResult

ENVS = ("calculator", "orders", "sensors")
END = "<|end|>"
TASK = Task("fake", {"answer": "42"})


class ScriptedEngine:
    """Answers one entry of the script per request.

    A text is encoded (a text without the end mark is cut off: `length`), an exception is raised, a
    `Completion` is returned as it is, and HANG never answers.
    """

    HANG = object()

    def __init__(self, tokenizer: Any, script: Sequence[Any], version: int = 0) -> None:
        self.tokenizer = tokenizer
        self.script = list(script)
        self.version = version
        self.requests: list[Request] = []
        self.asked = asyncio.Event()

    async def generate(self, request: Request) -> Completion:
        self.requests.append(request)
        self.asked.set()
        act = self.script.pop(0)
        if act is self.HANG:
            await asyncio.Event().wait()
        if isinstance(act, Exception):
            raise act
        if isinstance(act, Completion):
            return act
        ids = tuple(self.tokenizer.encode(act, add_special_tokens=False))
        return completion(ids, finish="stop" if act.endswith(END) else "length", v=self.version)


class FakeSession:
    """An environment's side of an episode that answers every call with `42` and ends on plain text.

    `fail` maps an act (open, step, score, close) to what it raises, or to HANG.
    """

    HANG = object()

    def __init__(
        self,
        opening: str = "6 times 7 ?",
        fail: dict[str, Any] | None = None,
        notes: dict[str, str] | None = None,
        by_turn: dict[int, dict[str, float]] | None = None,
    ) -> None:
        self.opening = opening
        self.by_turn = by_turn
        self.notes = notes or {}
        self.fail = fail or {}
        self.acts: list[str] = []
        self.calls: list[ToolCall] = []
        self.replies: list[str] = []

    async def open(self, task: Task) -> Opening:
        await self._act("open")
        schema = ToolSchema("multiply", "a times b", {"properties": {"a": {"type": "integer"}}})
        return Opening((Message("user", self.opening),), (schema,), self.notes)

    async def step(self, text: str, calls: tuple[ToolCall, ...]) -> TurnResult:
        await self._act("step")
        self.calls += calls
        if not calls:
            self.replies.append(text)
            return TurnResult((), done=True)
        return TurnResult(tuple(Message("tool", "42", name=c.name) for c in calls), done=False)

    async def score(self) -> NamedRewards:
        await self._act("score")
        return NamedRewards({"solved": 1.0}, self.by_turn)

    async def close(self) -> None:
        await self._act("close")

    async def _act(self, name: str) -> None:
        self.acts.append(name)
        failure = self.fail.get(name)
        if failure is self.HANG:
            await asyncio.Event().wait()
        if failure is not None:
            raise failure


class Probe(Env):
    """An environment whose acts do what the task's data say: `{"reset": "raise", "score": "hang"}`.

    `raise` raises RuntimeError, `refuse` ToolError, `late` TimeoutError, `exit` SystemExit, `hang` never
    returns.
    """

    name = "probe"
    closed = 0

    async def reset(self, task: Task) -> list[Message]:
        self.plan: dict[str, Any] = task.data
        await self._act("reset")
        return [Message("user", "go")]

    async def reply(self, text: str) -> Reply:
        await self._act("reply")
        return await super().reply(text)

    async def score(self) -> dict[str, float]:
        await self._act("score")
        return self.plan.get("rewards", {"solved": 1.0})

    async def close(self) -> None:
        self.closed += 1
        await self._act("close")

    @tool
    async def act(self, how: str) -> str:
        """an async tool that does as it is told"""
        await _obey(how)
        return "done"

    @tool
    def block(self, how: str) -> Any:
        """a sync tool that does as it is told"""
        match how:
            case "hang":
                threading.Event().wait(20)  # longer than any deadline; yet the process can end
            case "exit":
                raise SystemExit(3)
            case "iterate":
                return next(iter(()))
            case "unprintable":
                return Unprintable()
        if error := _error(how):
            raise error
        return "done"

    async def _act(self, name: str) -> None:
        await _obey(self.plan.get(name, ""))


class Unprintable:
    """A tool result that cannot be made text."""

    def __str__(self) -> str:
        raise RuntimeError("no text for this")


def _error(how: str) -> Exception | None:
    return {
        "raise": RuntimeError("the world is broken"),
        "refuse": ToolError("not like this"),
        "late": TimeoutError("the far end was slow"),
    }.get(how)


async def _obey(how: str) -> None:
    if how == "hang":
        await asyncio.Event().wait()
    if how == "exit":
        raise SystemExit(3)
    if error := _error(how):
        raise error


class Counting(Env):
    """An endless stream of distinct tasks without any world: `{"n": 0.123...}`."""

    name = "counting"

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return {"n": rng.random()}


async def play(session: EnvSession, task: Task, moves: Sequence[Any]) -> list[str]:
    """Open, make the moves (a ToolCall or a plain text each), and return what the tools said."""
    await session.open(task)
    said: list[str] = []
    for move in moves:
        text, calls = ("", (move,)) if isinstance(move, ToolCall) else (move, ())
        said += [m.content for m in (await session.step(text, calls)).messages]
    return said


def completion(
    ids: Sequence[int], *, finish: Any = "stop", v: int = 0, engine: str = "engine-0"
) -> Completion:
    """A completion all of one version, each token's log-prob its place: -0.5, -1.5, ..."""
    logprobs = tuple(-0.5 - index for index in range(len(ids)))
    return Completion(tuple(ids), logprobs, (VersionSpan(v, 0, len(ids)),), finish, engine)


def turn(
    prompt: Sequence[int] = (1, 2), written: Sequence[int] = (3, 4), *, v: int = 0, **changes: Any
) -> Turn:
    """A turn of one version."""
    c = completion(written, v=v)
    fields = {
        "prompt_ids": tuple(prompt),
        "completion_ids": c.token_ids,
        "rollout_logprobs": c.logprobs,
        "versions": c.versions,
        "finish_reason": c.finish_reason,
        "engine": c.engine,
        "text": "text",
    }
    return Turn(**{**fields, **changes})


def trajectory(
    id: str = "t0",
    *,
    stop: StopReason = "completed",
    turns: Sequence[Turn] | None = None,
    env_rewards: dict[str, float] | None = None,
    fault: str = "",
) -> Trajectory:
    """A short trajectory of the task TASK in the environment `fake`."""
    return Trajectory(
        id=id,
        group="g0",
        env="fake",
        task=TASK,
        opening=(Message("user", "6 times 7 ?"),),
        turns=(turn(),) if turns is None else tuple(turns),
        stop_reason=stop,
        env_rewards={"solved": 1.0} if env_rewards is None else env_rewards,
        phases=(),
        fault=fault,
    )


def scored(id: str = "t0", reward: float = 1.0, **changes: Any) -> ScoredTrajectory:
    """A trajectory with its reward."""
    return ScoredTrajectory(trajectory(id, **changes), {"solved": reward}, reward)


def member(id: str = "t0", **changes: Any) -> MemberReport:
    """A trajectory in numbers."""
    fields: dict[str, Any] = {
        "id": id,
        "stop_reason": "completed",
        "judged": True,
        "reward": 1.0,
        "rewards": {"solved": 1.0},
        "versions": (0,),
        "num_turns": 2,
        "num_tokens": 40,
        "num_completion_tokens": 10,
        "num_malformed": 0,
        "num_bad_calls": 0,
        "phase_seconds": {"generate": 0.5},
        "fault": "",
        "file": "trajectories/c.jsonl",
        "offset": 0,
    }
    return MemberReport(**{**fields, **changes})


def group_report(env: str, members: Sequence[MemberReport], **changes: Any) -> GroupReport:
    """A finished group of an environment."""
    spec = GroupSpec("g0", env, TASK, tuple(m.id for m in members), train=True)
    fields: dict[str, Any] = {
        "spec": spec,
        "members": tuple(members),
        "sample_ids": tuple(m.id for m in members),
        "dropped": (),
        "start": 100.0,
        "end": 101.0,
    }
    return GroupReport(**{**fields, **changes})


def waiting(id: str = "t0", **changes: Any) -> Waiting:
    """A trajectory that waits for a tool."""
    fields: dict[str, Any] = {
        "id": id,
        "env": "calculator",
        "version": 3,
        "phase": "tool",
        "at": "host-0",
        "seconds": 99.0,
        "p99": 4.0,
        "left": 1.0,
        "then": "failed: env_fault",
    }
    return Waiting(**{**fields, **changes})


def sample(
    id: str,
    length: int,
    rng: random.Random,
    *,
    version: int = 0,
    vocab: int = 400,
    prompt: int = 2,
    reward: float = 0.0,
) -> TrainSample:
    """A random sequence: a prompt, then spans that the policy wrote and spans that it read."""
    mask = [t >= prompt and (t == prompt or rng.random() < 0.6) for t in range(length)]
    advantage = rng.choice([-1.5, -0.5, 0.5, 1.5])
    return TrainSample(
        id=id,
        env="fake",
        token_ids=tuple(rng.randrange(20, vocab) for _ in mask),
        loss_mask=tuple(mask),
        rollout_logprobs=tuple(-rng.uniform(1, 8) if m else 0.0 for m in mask),
        advantages=tuple(advantage if m else 0.0 for m in mask),
        versions=tuple(version if m else -1 for m in mask),
        reward=reward,
    )


class Remote:
    """A method of an actor's handle: `.remote(...)` starts it and gives back what to await."""

    def __init__(self, act: Callable[..., Awaitable[Any]]) -> None:
        self.act = act

    def remote(self, *arguments: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.act(*arguments))


class FakeEngine(EngineActor):
    """An engine of a `FakePool`."""

    def __init__(self, name: str, pool: "FakePool") -> None:
        self.name, self.pool = name, pool

    async def stage(self, path: str, version: int) -> float:
        await self.pool.act(f"stage {self.name}", version)
        assert Path(path).read_bytes() == b"weights"
        self.pool.staged[self.name] = version
        return 5.0

    async def load(self, path: str, version: int) -> LoadTimes:
        await self.pool.act(self.name, version)
        assert Path(path).read_bytes() == b"weights"
        self.pool.read[self.name] = path
        staging_ms = 0.0 if self.pool.staged.pop(self.name, None) == version else 5.0
        return LoadTimes(pause_ms=2.0, swap_ms=1.0, staging_ms=staging_ms)

    async def sleep(self) -> None:
        await self.pool.act(self.name, "sleep")

    async def wake(self) -> None:
        await self.pool.act(self.name, "wake")

    async def heartbeat(self) -> Heartbeat:
        return Heartbeat(1234, "127.0.0.1")

    async def pulse(self) -> None:
        await self.pool.act(f"pulse {self.name}", None)


class FakeLearner(LearnerActor):
    """The learner of a `FakePool`."""

    def __init__(self, pool: "FakePool") -> None:
        self.pool = pool

    async def step(self, groups: Sequence[Any]) -> StepResult:
        await self.pool.act("step", list(groups))
        metrics = {"learner/tokens": 40.0, "parity/tokens": 10.0, "parity/mean_abs_dlogp": 1e-6}
        return StepResult(metrics, 2, [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])

    async def record(self) -> list[tuple[str, int]]:
        await self.pool.act("record", None)
        return [("g000000-0", 10 * sum(name == "record" for name, _ in self.pool.log))]

    async def lost(self, groups: Sequence[Any]) -> list[int]:
        return [index for index, samples in enumerate(groups) if samples in self.pool.gone]

    async def snapshot(self, version: int) -> float:
        await self.pool.act("snapshot", version)
        self.pool.copied.add(version)
        return 3.0

    async def publish(self, version: int, path: str) -> int:
        await self.pool.act("publish", path)
        self.pool.copied.remove(version)
        Path(path).write_bytes(b"weights")
        return 7

    async def save(self, folder: str, position: str) -> None:
        self.pool.positions.append(position)
        await self.pool.act("save", folder)

    async def saved(self) -> None:
        await self.pool.act("saved", None)


class FakePool(Actors):
    """A learner and two engines; `log` is what they were asked.

    `fail` maps an act (step, snapshot, publish, save, saved, "stage engine-0", or an engine's name for its
    load) to what it raises, or HANG.
    """

    HANG = object()

    def __init__(self, fail: dict[str, Any] | None = None, turns: int = 1) -> None:
        """`turns`: how often the event loop turns until an act is done."""
        super().__init__(local_handle(FakeLearner(self)), {}, {}, {})
        for name in ("engine-0", "engine-1"):
            self.add(name)
        self.fail = fail or {}
        self.turns = turns
        self.log: list[tuple[str, Any]] = []
        # Samples that are gone with their node.
        self.gone: set[Any] = set()
        self.copied: set[int] = set()
        self.positions: list[str] = []
        self.ended: list[str] = []
        # What each engine has staged, and the file that it has loaded.
        self.staged: dict[str, int] = {}
        self.read: dict[str, str] = {}

    def add(self, name: str) -> None:
        """An engine more."""
        self.engines[name] = local_handle(FakeEngine(name, self))

    async def end_engine(self, name: str) -> None:
        """An engine that hangs is ended."""
        self.ended.append(name)

    def weights(self) -> list[Path]:
        """Published files that are still there."""
        paths = {Path(path) for name, path in self.log if name == "publish"}
        return sorted(path for path in paths if path.exists())

    async def act(self, name: str, detail: Any) -> None:
        """An act of one of them: noted, and done or failed some turns later."""
        self.log.append((name, detail))
        for _ in range(self.turns):
            await asyncio.sleep(0)
        failure = self.fail.get(name)
        if failure is self.HANG:
            await asyncio.Event().wait()
        if failure is not None:
            raise failure


class FakeDispatcher:
    """Plays groups (`rl.loop.dispatcher.Dispatcher`): the first member of each succeeds, the others do not.

    `outcome(spec)` says how a group ends: "samples", "filtered", "fault", "lost", "dead" or "hang".
    """

    def __init__(
        self,
        served_version: Callable[[], int] = lambda: 0,
        outcome: Callable[[GroupSpec], str] = lambda spec: "samples",
        seed: int = 0,
        in_order: bool = False,
    ) -> None:
        """`in_order`: no group ends before those that began before it."""
        self.in_order = in_order
        self.last = asyncio.Event()
        self.last.set()
        self.served_version = served_version
        self.outcome = outcome
        self.rng = random.Random(seed)
        self.playing: dict[str, GroupSpec] = {}
        self.most_at_once = 0
        self.played: list[tuple[int, GroupSpec]] = []
        self.cancelled = False
        self.given_up: set[str] = set()
        self.pace = 0.0  # seconds of each turn of a group

    async def play(self, spec: GroupSpec) -> Played | Lost | None:
        version = self.served_version() if spec.version is None else spec.version
        outcome = self.outcome(spec)
        self.played.append((version, spec))
        self.playing[spec.id] = spec
        self.most_at_once = max(self.most_at_once, len(self.playing))
        before, mine = self.last, asyncio.Event()
        self.last = mine
        try:
            for _ in range(self.rng.randint(1, 40)):
                await asyncio.sleep(self.pace)
                if spec.id in self.given_up:
                    return None
            if self.in_order:
                await before.wait()
            while outcome == "hang" and spec.id not in self.given_up:
                await asyncio.sleep(0.001)
        finally:
            mine.set()
            del self.playing[spec.id]
        if spec.id in self.given_up:
            return None
        if outcome == "dead":
            return Lost("controller-0: it died")
        return None if outcome == "lost" else Played(self._report(spec, version, outcome), spec.id)

    def give_up(self, group: str) -> None:
        self.given_up.add(group)

    def cancel(self) -> None:
        self.cancelled = True

    async def waiting(self, count: int) -> WaitingTable:
        rows = [waiting(id, env=s.env) for s in self.playing.values() for id in s.ids]
        return WaitingTable(tuple(worst(rows, count)), Counter((r.env, r.phase) for r in rows))

    def _report(self, spec: GroupSpec, version: int, outcome: str) -> GroupReport:
        changes: dict[str, Any] = {"versions": (version,)}
        if outcome == "fault":
            changes |= {"judged": False, "stop_reason": "env_fault", "fault": "the world is gone"}
        solved = {True: 1.0, False: 0.0}
        members = tuple(
            member(id, reward=solved[n == 0], rewards={"solved": solved[n == 0]}, **changes)
            for n, id in enumerate(spec.ids)
        )
        dropped = {
            "filtered": (Dropped(spec.ids, "filtered", "zero_variance"),),
            "fault": (Dropped(spec.ids, "failed", "env_fault"),),
        }.get(outcome, ())
        samples = () if dropped or not spec.train else spec.ids
        return GroupReport(spec, members, samples, dropped if spec.train else (), 100.0, 101.0)


def write_run(path: Path, *, groups: int, group_size: int, learner_seconds: float) -> Path:
    """The folder of a finished run: two turns per trajectory with a tool between; the last group filtered."""
    config = RunConfig(
        name=path.name,
        runs_dir=str(path.parent),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )
    folder = RunFolder(config)
    writer = TrajectoryWriter(path, "controller-0")
    turns = (turn(range(30), range(10)), turn(range(6), range(5)))
    for group in range(groups):
        start = 100.0 + 2 * group
        phases = (
            Phase("generate", start, 0.3),
            Phase("tool", start + 0.3, 0.4),
            Phase("generate", start + 0.7, 0.2),
        )
        members: list[MemberReport] = []
        for index in range(group_size):
            played = trajectory(f"g{group:06}.{index}", turns=turns)
            whole = ScoredTrajectory(replace(played, phases=phases), {"solved": 1.0}, 1.0)
            members.append(member_report(whole, *writer.write(whole)))
        filtered = (Dropped(tuple(m.id for m in members), "filtered", "zero_variance"),) * (
            group == groups - 1
        )
        report = group_report("calculator", members, dropped=filtered)
        spec = replace(report.spec, id=f"g{group:06}")
        sample_ids = () if filtered else report.sample_ids
        folder.index(replace(report, spec=spec, sample_ids=sample_ids), "train")
    values = {
        "time/learner_seconds": learner_seconds,
        "sync/snapshot_ms": 10.0,
        "sync/pause_ms": 70.0,
    }
    for step in (1, 2):
        folder.metrics(step, values)
    folder.close()
    return path
