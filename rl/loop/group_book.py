"""The books of a run: where each group is between its dispatch and its end.

    begin -> in flight -> book -> queue -> take_batch -> training -> trained (-> reuse)
                 | lose, evict    | drop_stale               | put_back

Consumes what became of groups. Produces batches, what the scheduler has to know (`Backlog`), and the metrics
of a step. Every change keeps the ledger's equation: dispatched = trained + filtered + stale + failed +
cancelled + in flight + buffered, for every environment. No Ray, no clock, no files here.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from envs.env import Task
from rl.config import BatchConfig
from rl.loop.totals import RunStats
from rl.samples.group import GroupReport, GroupSpec, MemberReport
from rl.samples.hacking_config import HackingConfig
from rl.samples.ledger import Closed, Ledger
from rl.samples.reuse import ReuseBuffer
from rl.samples.reward_hacking import HackingMeters
from rl.samples.sample_queue import BufferedGroup, SampleQueue, count_by_version
from rl.samples.score_drift import ScoreDrift
from rl.samples.selection import SelectionBias
from rollout.scheduler import Backlog
from rollout.window import Rules, Window, may_step


class GroupBook:
    """Books every group of one run. An id is in one place at a time, and the ledger says in which."""

    def __init__(
        self,
        batch: BatchConfig,
        rules: Rules,
        seed: int,
        *,
        learner_version: int = 0,
        hacking: HackingMeters | None = None,
        drifts: Sequence[ScoreDrift] = (),
    ) -> None:
        """learner_version: the one that the learner has. seed: of the draws of reused groups."""
        self.batch = batch
        self.rules = rules
        self.learner_version = learner_version
        # Groups that have begun; the next one is called after it.
        self.number = 0
        self.ledger = Ledger()
        self.selection = SelectionBias()
        self.stats = RunStats()
        self.hacking = hacking or HackingMeters(HackingConfig(), {})
        self.drifts = drifts
        self.queue = SampleQueue(rules.max_staleness)
        share = batch.groups - batch.fresh_groups
        self.reuse = ReuseBuffer(share, rules.max_staleness, seed)
        self.in_flight: dict[str, GroupSpec] = {}
        # Groups of `in_flight` per version: counted as they come and go, for it is asked at every change.
        self.playing: Counter[int | None] = Counter()
        # Groups of an evaluation beside training: they hold their version, and are in no ledger.
        self.heldout: dict[str, GroupSpec] = {}
        # The batch of the learner: groups for the first time, which the ledger follows, and reused ones.
        self.training: list[BufferedGroup] = []
        self.reused: list[BufferedGroup] = []

    @property
    def next_id(self) -> str:
        """The id of the group that begins next."""
        return f"g{self.number:06}"

    def begin(self, env: str, task: Task, version: int) -> GroupSpec:
        """Book a group as dispatched. version: it plays all of it, unless weights change under requests."""
        id = self.next_id
        self.number += 1
        ids = tuple(f"{id}.{index}" for index in range(self.batch.group_size))
        pinned = None if self.rules.in_place else version
        spec = GroupSpec(id, env, task, ids, train=True, version=pinned)
        self.ledger.dispatch(env, ids)
        self.selection.dispatch(env, len(ids))
        self.in_flight[id] = spec
        self.playing[pinned] += 1
        return spec

    def book(self, report: GroupReport, samples: object) -> list[MemberReport]:
        """Book a group in flight that has been played; its samples, if it gave any, wait for the learner.

        samples: reference to them. Returns the members with a fault that no group had before.
        """
        self._leave(report.spec.id)
        self.selection.played(report.spec.env, report.members)
        for meter in (self.hacking, *self.drifts):
            meter.add(report)
        new_faults = self.stats.played(report)
        for drop in report.dropped:
            self._close(drop.ids, drop.outcome, drop.reason)
        if report.sample_ids:
            self.ledger.buffer(report.sample_ids)
            oldest = {m.id: min(m.versions) for m in report.members if m.versions}
            versions = tuple(oldest[id] for id in report.sample_ids)
            self.queue.put(
                BufferedGroup(report.spec.id, report.spec.env, report.sample_ids, versions, samples)
            )
            self.drop_stale()
        return new_faults

    def lose(self, group: str) -> None:
        """Book a group in flight whose controller died or did not answer."""
        self._close(self._leave(group).ids, "failed", "controller_fault")

    def evict(self, versions: Collection[int]) -> list[GroupSpec]:
        """Give up what is in flight on these versions. Returns the groups, whose tasks are to begin anew."""
        evicted = [spec for spec in self.in_flight.values() if spec.version in versions]
        for spec in evicted:
            self._leave(spec.id)
            self._close(spec.ids, "stale", "evicted")
        return evicted

    def evict_heldout(self, versions: Collection[int]) -> list[GroupSpec]:
        """Give up held-out groups in flight on these versions. Returns them; they are to begin anew."""
        evicted = [spec for spec in self.heldout.values() if spec.version in versions]
        for spec in evicted:
            del self.heldout[spec.id]
        return evicted

    def drained(self, version: int) -> bool:
        """True if nothing is in flight on the version."""
        return not self.playing[version] and not any(
            spec.version == version for spec in self.heldout.values()
        )

    def drop_stale(self) -> int:
        """Drop buffered groups that have become too old to be trained on. Returns how many."""
        stale = self.queue.drop_stale(self.learner_version)
        for group in stale:
            self._close(group.ids, "stale", "too_old")
        return len(stale)

    async def take_batch(self) -> None:
        """Wait for a step's groups: new ones, and in place of some of them those that can be reused.

        `training` stays empty once the queue has been ended.
        """
        count = self.batch.groups
        self.training = await self.queue.take(
            count, self.learner_version, self._may_step, fewest=count - self.reuse.available
        )
        if self.training:
            self.reused = self.reuse.draw(count - len(self.training), self.learner_version)

    def put_back(self, lost: Collection[str]) -> None:
        """Give the batch back, without the groups whose samples are gone with a node (`lost`, by id)."""
        batch, self.training, self.reused = self.training, [], []
        for group in batch:
            if group.id in lost:
                self._close(group.ids, "failed", "node_lost")
            else:
                self.queue.put(group)
        self.reuse.forget(lost)

    def trained(self, metrics: dict[str, float]) -> dict[str, float]:
        """Close the batch: the learner has made its next version of it. Returns the metrics of the step."""
        for group in self.training:
            self._close(group.ids, "trained")
        batch = (*self.training, *self.reused)
        values = {
            **metrics,
            **self.stats.trained(batch, self.learner_version, metrics),
            **self.selection.metrics(),
            **self.hacking.metrics(),
            **{key: value for one in self.drifts for key, value in one.metrics().items()},
            "queue/groups": float(len(self.queue.groups)),
            "queue/in_flight_groups": float(len(self.in_flight)),
            "replay/reused_groups": float(len(self.reused)),
            "replay/groups": float(len(self.reuse.groups)),
        }
        self.learner_version += 1
        self.reuse.trained(self.training, self.learner_version)
        self.training, self.reused = [], []
        return values

    def backlog(self, window: Window) -> Backlog:
        """Where the run stands, as the scheduler sees it."""
        groups = {window.newest if v is None else v: n for v, n in self.playing.items()}
        buffered = Counter(count_by_version(self.queue.groups))
        buffered.update(count_by_version(self.training))
        heldout: Counter[int] = Counter()
        for spec in self.heldout.values():
            heldout[window.newest if spec.version is None else spec.version] += len(spec.ids)
        return Backlog(
            window=window,
            learner_version=self.learner_version,
            active={version: n * self.batch.group_size for version, n in groups.items()},
            groups=groups,
            buffered=buffered,
            heldout=heldout,
        )

    def cancel_all(self) -> None:
        """Close everything that is open, at the end of the run."""
        for group in (*self.in_flight.values(), *self.queue.groups, *self.training):
            self._close(group.ids, "cancelled")
        self.in_flight, self.queue.groups, self.training = {}, [], []
        self.playing.clear()

    def check(self) -> None:
        """Compare the ledger with what is in flight and buffered. Raises LedgerError."""
        playing = {id for spec in self.in_flight.values() for id in spec.ids}
        waiting = {id for group in (*self.queue.groups, *self.training) for id in group.ids}
        self.ledger.check(playing, waiting)

    def _may_step(self, rest: Sequence[BufferedGroup]) -> bool:
        """Return True if a step leaves nothing behind that would become too old."""
        remaining = Counter({v: n for v, n in self.playing.items() if v is not None})
        remaining.update(count_by_version(rest))
        return may_step(self.learner_version, remaining, self.batch.fresh_groups, self.rules)

    def _leave(self, group: str) -> GroupSpec:
        spec = self.in_flight.pop(group)
        self.playing -= Counter((spec.version,))
        return spec

    def _close(self, ids: Sequence[str], outcome: Closed, reason: str = "") -> None:
        self.ledger.close(ids, outcome, reason)
        self.selection.close(ids, outcome)
