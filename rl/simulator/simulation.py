"""One run in simulated time: rollouts, learner and weights as events on a heap.

Everything that is decided is decided by `rollout.scheduler` and `rollout.window`, the functions of the
live run; what is simulated is how long engines, tools and the learner take.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rl.config_file import ConfigError
from rl.simulator.config import ModeSpec, SimConfig
from rl.simulator.engine import SimEngine, Work
from rl.simulator.trajectory_plan import GroupPlan, Plan
from rl.simulator.workload import plans
from rollout.placement import EngineState, InProgress, Placement
from rollout.scheduler import Backlog, Limits, admission, decide, trigger
from rollout.window import Window, may_step, publish

State = Literal["parked", "engine", "tool", "moving"]


@dataclass
class Trajectory:
    """A trajectory in progress. engine: where its cache is; cached: tokens of it."""

    id: int
    group: int
    version: int
    plan: Plan
    left: float
    context: float
    turn: int = 0
    engine: str = ""
    cached: float = 0
    state: State = "parked"


@dataclass
class Group:
    """A group in flight: how many of its trajectories are not finished."""

    version: int
    plan: GroupPlan
    left: int


@dataclass
class StepRecord:
    """One learner step: when it ended, how long the learner worked, its tokens, each group's staleness."""

    end: float
    learner_seconds: float
    tokens: int
    staleness: list[int]


@dataclass
class Tally:
    """Counts of a simulation."""

    dispatched: int = 0
    trained: int = 0
    filtered: int = 0
    discarded: int = 0
    stale: int = 0
    weight_moves: int = 0
    request_moves: int = 0
    bytes_moved: float = 0.0
    reprefilled_tokens: float = 0.0
    rebalances: Counter[str] = field(default_factory=Counter)


class Simulation:
    """One mode of a configuration. `run` plays warm-up and measured steps."""

    def __init__(
        self, config: SimConfig, mode: ModeSpec, source: Iterator[GroupPlan] | None = None
    ) -> None:
        """source: the groups to play, in place of those that the configuration describes."""
        self.config, self.mode, self.rules = config, mode, mode.rules
        batch = config.workload
        self._place_devices()
        self.limits = Limits(
            batch_groups=batch.groups,
            group_size=batch.group_size,
            target=round(mode.over_dispatch * batch.groups * batch.group_size),
            engine_limit=mode.engine_limit,
            slack=mode.slack,
            expected_tokens=mode.expected_tokens,
            cache_pressure=mode.cache_pressure,
            period_seconds=mode.period_seconds,
            max_groups=mode.max_groups,
            max_active=(mode.active_per_engine or 2**31) * len(self.engines),
        )
        if self.limits.max_active < batch.group_size:
            raise ConfigError(
                f"active_per_engine: {self.limits.max_active} trajectories in progress are less than one "
                f"group ({batch.group_size})"
            )
        self.source = source or plans(config.workload, config.seed)
        self.now = 0.0
        self.window = Window((0,))
        self.learner = 0
        self.training: list[tuple[int, int]] | None = None
        self.last_rebalance = 0.0
        self.trajectories: dict[int, Trajectory] = {}
        self.groups: dict[int, Group] = {}
        self.buffered: list[tuple[int, int]] = []
        self.plans: dict[int, GroupPlan] = {}
        self.active: Counter[int] = Counter()
        self.in_flight: Counter[int] = Counter()
        self.loads: Counter[str] = Counter()
        self.tally = Tally()
        self.steps: list[StepRecord] = []
        self.ids = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def _place_devices(self) -> None:
        """Engines, those of them that the learner borrows while it trains, and the learner's devices."""
        cluster, mode = self.config.cluster, self.mode
        total = cluster.devices // cluster.devices_per_engine
        own = min(total - 1, max(1, round(mode.rollout_share * total)))
        count = own if mode.layout == "disaggregated" else total
        self.engines = {f"e{i:05}": SimEngine(f"e{i:05}", self.config.cost) for i in range(count)}
        for engine in self.engines.values():
            engine.version, engine.limit = 0, mode.engine_limit
        names = list(self.engines)
        self.borrowed = {"disaggregated": [], "colocated": names, "elastic": names[own:]}[
            mode.layout
        ]
        training = total if mode.layout == "colocated" else total - own
        self.learner_devices = training * cluster.devices_per_engine

    def run(self) -> None:
        """Play until the last step has ended."""
        self._rebalance("step")
        self._tick()
        wanted = self.config.warmup_steps + self.config.steps
        while len(self.steps) < wanted:
            if not self._events:
                raise RuntimeError(f"the simulated run stands still after {len(self.steps)} steps")
            self.now, _, act = heapq.heappop(self._events)
            act()

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (time, next(self._order), act))

    def ledger_remainder(self) -> int:
        """Trajectories that are in no state; 0 always."""
        size, tally = self.limits.group_size, self.tally
        training = len(self.training or ())
        open_groups = len(self.groups) + len(self.buffered) + training
        ends = tally.trained + tally.filtered + tally.discarded + tally.stale
        return tally.dispatched - ends - size * open_groups

    # Rollouts

    def _begin(self, admit: dict[int, int]) -> None:
        for version, count in admit.items():
            for _ in range(count):
                plan = next(self.source)
                group = next(self.ids)
                self.plans[group] = plan
                self.groups[group] = Group(version, plan, len(plan.members))
                self.in_flight[version] += 1
                self.active[version] += len(plan.members)
                self.tally.dispatched += len(plan.members)
                for member in plan.members:
                    id = next(self.ids)
                    self.trajectories[id] = one = Trajectory(
                        id, group, version, member, member.turns[0], member.prompt_tokens
                    )
                    self._submit(one)

    def _submit(self, one: Trajectory) -> None:
        """Begin a turn at the trajectory's engine, or at the least busy one of its version."""
        home = self.engines.get(one.engine)
        if home is None or home.version != one.version:
            fitting = [e for e in self.engines.values() if e.version == one.version and e.available]
            home = min(fitting, key=lambda e: self.loads[e.name], default=None)
        if home is None or not home.available:
            one.state = "parked"
            return
        self._settle(one, home.name)
        one.state = "engine"
        self._touch(home)
        home.add(Work(one.id, one.left, one.context, one.cached))
        one.cached = one.context
        self._watch(home)

    def _settle(self, one: Trajectory, engine: str) -> None:
        """Book a trajectory on an engine."""
        if one.engine != engine:
            self.loads[one.engine] -= 1
            self.loads[engine] += 1
            one.engine = engine

    def _touch(self, engine: SimEngine) -> None:
        engine.advance(self.now)

    def _watch(self, engine: SimEngine) -> None:
        """Wake up when the engine's next sequence ends; any later change makes this one void."""
        engine.stamp += 1
        end = engine.next_end()
        if end is not None:
            stamp = engine.stamp
            self.at(end, lambda: self._engine_event(engine, stamp))

    def _engine_event(self, engine: SimEngine, stamp: int) -> None:
        if engine.stamp != stamp:
            return
        self._touch(engine)
        while (id := engine.take_ended()) is not None:
            self._turn_ended(self.trajectories[id])
        self._watch(engine)
        self._rebalance_if_due(cache_usage=engine.cache_usage)
        self._go_on()

    def _turn_ended(self, one: Trajectory) -> None:
        one.context += one.left
        one.cached = one.context
        if one.turn < len(one.plan.tool_seconds):
            wait = one.plan.tool_seconds[one.turn]
            one.turn += 1
            one.left = one.plan.turns[one.turn]
            one.state = "tool"
            self.at(self.now + wait, lambda: self._tool_returned(one))
            return
        self.loads[one.engine] -= 1
        del self.trajectories[one.id]
        self.active[one.version] -= 1
        group = self.groups[one.group]
        group.left -= 1
        if not group.left:
            self._group_ended(one.group, group)

    def _tool_returned(self, one: Trajectory) -> None:
        if one.id in self.trajectories:
            one.context += one.plan.tool_tokens
            self._submit(one)

    def _group_ended(self, id: int, group: Group) -> None:
        del self.groups[id]
        self.in_flight[group.version] -= 1
        if group.plan.filtered:
            self.tally.filtered += self.limits.group_size
        else:
            self.buffered.append((group.version, id))

    def _go_on(self) -> None:
        """Do what a finished trajectory may allow: a new version, new groups, a learner step."""
        if self.window.pending is not None and not self.active[self.window.versions[0]]:
            self._rebalance("drained")
        admit = admission(self._backlog(), self.rules, self.limits)
        served = {engine.version for engine in self.engines.values() if engine.available}
        if not served.issuperset(admit):
            self._rebalance("unserved")
        elif admit:
            self._begin(admit)
        self._train_if_ready()

    # Learner

    def _train_if_ready(self) -> None:
        if self.training is not None:
            return
        batch_groups = self.limits.batch_groups
        self.buffered.sort()
        fresh = [b for b in self.buffered if self.learner - b[0] <= self.rules.max_staleness]
        self.tally.stale += (len(self.buffered) - len(fresh)) * self.limits.group_size
        self.buffered = fresh
        batch, rest = fresh[:batch_groups], fresh[batch_groups:]
        remaining = Counter(version for version, _ in rest) + self.in_flight
        if len(batch) < batch_groups or not may_step(
            self.learner, remaining, batch_groups, self.rules
        ):
            return
        self.training, self.buffered = batch, rest
        cost = self.config.cost
        tokens = sum(p.tokens for _, group in batch for p in self.plans[group].members)
        seconds = (
            cost.train_fixed_seconds
            + tokens * cost.train_device_seconds_per_token / self.learner_devices
        ) * self.mode.train_factor
        for name in self.borrowed:
            self._switch(self.engines[name], available=False)
        if self.borrowed and len(self.borrowed) < len(self.engines):
            self._rebalance("switch")
        if any(engine.available and engine.running for engine in self.engines.values()):
            seconds *= cost.learner_beside_engines
        self._slow_down(cost.engine_beside_learner)
        self.at(self.now + seconds, lambda: self._trained(seconds, tokens))

    def _trained(self, seconds: float, tokens: int) -> None:
        assert self.training is not None, "only a step that began can end"
        gaps = [self.learner - version for version, _ in self.training]
        for _, group in self.training:
            del self.plans[group]
        self.tally.trained += len(self.training) * self.limits.group_size
        self.training = None
        self.steps.append(StepRecord(self.now, seconds, tokens, gaps))
        self.learner += 1
        self.window = publish(self.window, self.learner)
        self._slow_down(1.0)
        for name in self.borrowed:
            self._switch(self.engines[name], available=True)
        self._rebalance("step")
        self._go_on()

    def _slow_down(self, times: float) -> None:
        """Let all engines take so many times as long from now on."""
        for engine in self.engines.values():
            if engine.slow != times:
                self._touch(engine)
                engine.slow = times
                self._watch(engine)

    def _switch(self, engine: SimEngine, *, available: bool) -> None:
        """Lend an engine's devices to the learner, or get them back; its sequences wait in place."""
        self._touch(engine)
        engine.available = available
        self._watch(engine)
        if available:
            parked = [t for t in self.trajectories.values() if t.state == "parked"]
            for one in parked:
                if one.engine == engine.name:
                    self._submit(one)

    # Rebalancing

    def _backlog(self) -> Backlog:
        buffered = Counter(version for version, _ in self.buffered)
        buffered.update(version for version, _ in self.training or ())
        return Backlog(self.window, self.learner, self.active, self.in_flight, buffered)

    def _states(self) -> list[EngineState]:
        return [
            EngineState(e.name, e.version, e.limit) for e in self.engines.values() if e.available
        ]

    def _tick(self) -> None:
        self._rebalance_if_due(cache_usage=0.0)
        self.at(self.now + self.limits.period_seconds, self._tick)

    def _rebalance_if_due(self, *, cache_usage: float) -> None:
        idle = self.now - self.last_rebalance
        why = trigger(self.limits, step_ended=False, cache_usage=cache_usage, idle_seconds=idle)
        if why is not None and self._states():
            self._rebalance(why)

    def _rebalance(self, why: str) -> None:
        self.tally.rebalances[why] += 1
        self.last_rebalance = self.now
        for engine in self.engines.values():
            self._touch(engine)
        # New weights come to where the requests are: nobody moves.
        staying = {} if self.rules.in_place else self.trajectories
        ones = [
            InProgress(str(t.id), t.version, t.engine, round(t.context)) for t in staying.values()
        ]
        decision = decide(self._backlog(), self._states(), ones, self.rules, self.limits)
        self._discard(decision.evicted)
        changed = decision.window != self.window
        self.window = decision.window
        if self.rules.in_place:
            if changed:
                self._swap_in_place()
        else:
            self._carry_out(decision.placement)
        self._begin(dict(decision.admit))
        for engine in self.engines.values():
            self._watch(engine)

    def _carry_out(self, placement: Placement) -> None:
        for move in placement.requests:
            one = self.trajectories[int(move.id)]
            work = self._take_away(one)
            self.tally.request_moves += bool(move.source)
            if work is not None:
                one.left, one.context, one.cached = work.left, work.context, work.cached
            self._settle(one, move.target)
            delay = self._travel(one) if move.source else 0.0
            if one.state == "tool":
                continue
            one.state = "moving"
            self.at(self.now + delay, lambda one=one: self._arrived(one))
        for id in placement.parked:
            one = self.trajectories[int(id)]
            work = self._take_away(one)
            if work is not None:
                one.left, one.context, one.cached = work.left, work.context, work.cached
                one.state = "parked"
        for move in placement.weights:
            engine = self.engines[move.engine]
            engine.version = move.version
            engine.stall(self.config.cost.weights_seconds)
            self.tally.weight_moves += 1
        waiting = [t for t in self.trajectories.values() if t.state == "parked"]
        for one in waiting:
            self._submit_if_room(one)

    def _submit_if_room(self, one: Trajectory) -> None:
        home = self.engines.get(one.engine)
        if home is None or (home.available and home.version == one.version):
            self._submit(one)

    def _take_away(self, one: Trajectory) -> Work | None:
        if one.state != "engine":
            return None
        engine = self.engines[one.engine]
        return engine.remove(one.id)

    def _travel(self, one: Trajectory) -> float:
        """Seconds that a cache is on its way; where caches do not travel, it is lost."""
        cost = self.config.cost
        if not cost.move_bytes_per_second:
            self.tally.reprefilled_tokens += one.cached
            one.cached = 0
            return 0.0
        bytes_moved = one.cached * cost.kv_bytes_per_token
        self.tally.bytes_moved += bytes_moved
        return bytes_moved / cost.move_bytes_per_second

    def _arrived(self, one: Trajectory) -> None:
        if one.id in self.trajectories and one.state == "moving":
            self._submit(one)

    def _swap_in_place(self) -> None:
        """New weights under running requests: every context is computed again."""
        newest = self.window.newest
        for engine in self.engines.values():
            engine.version = newest
            engine.stall(self.config.cost.weights_seconds)
            engine.recompute()
            self.tally.reprefilled_tokens += engine.cached + engine.running * engine.clock
            self.tally.weight_moves += 1
        for one in self.trajectories.values():
            one.version = newest
            one.cached = 0 if one.state != "engine" else one.cached
        self.active = Counter({newest: len(self.trajectories)})

    def _discard(self, evicted: tuple[int, ...]) -> None:
        """Give up what is left of some versions; their groups begin anew as fresh tasks."""
        gone = {id for id, group in self.groups.items() if group.version in evicted}
        for one in [t for t in self.trajectories.values() if t.group in gone]:
            self._take_away(one)
            self.loads[one.engine] -= 1
            self.active[one.version] -= 1
            del self.trajectories[one.id]
        for id in gone:
            group = self.groups.pop(id)
            self.in_flight[group.version] -= 1
            del self.plans[id]
            self.tally.discarded += self.limits.group_size
