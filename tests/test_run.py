"""The loops of a run over fake actors: order, backpressure, staleness, and every way out.

Nothing here starts Ray: the learner, the engines and the dispatcher are stand-ins from `fakes`.
"""

import asyncio
import errno
import io
import itertools
import json
import sqlite3
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import FakeDispatcher, FakePool
from ray.exceptions import ActorDiedError, RayActorError
from rich.console import Console

from rl.config import RunConfig
from rl.fleet import node_watch
from rl.fleet.node_watch import NodesLost
from rl.fleet.weight_sync import SyncError
from rl.loop.run import Interrupted, Run
from rl.loop.run_error import RunError
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.record.status import read_status
from rl.trackers.trackers import Trackers
from trainer.checkpoint_folder import CheckpointError, Record, complete, make_room

SETTINGS = {
    "name": "demo",
    "steps": 5,
    "mode": "in_flight",
    "max_staleness": 1,
    "model": {"init": {}},
    "env": [{"id": "calculator"}, {"id": "sensors", "weight": 2}],
    "batch": {"groups": 3, "group_size": 2},
    "rollout": {"max_in_flight_groups": 8},
    "eval": {"before": False, "after": False, "tasks": 4},
    "wandb": {"enabled": False},
}


@pytest.fixture
def start(tmp_path):
    """Build a run over fakes; all of them are closed in the end."""
    opened: list[RunFolder] = []

    def start(fail=None, outcome=lambda spec: "samples", seed: int = 0, **settings) -> Run:
        config = RunConfig.model_validate({**SETTINGS, "runs_dir": str(tmp_path), **settings})
        folder = RunFolder(config)
        opened.append(folder)
        cluster = SimpleNamespace(actors=FakePool(fail), weights=tmp_path)
        progress = Progress(Console(file=io.StringIO(), width=200))
        run = Run(config, cluster, folder, progress, Trackers(folder))
        fake = FakeDispatcher(lambda: run.fleet.window.newest, outcome, seed)
        run.dispatcher = run.rollouts.dispatcher = run.watch.dispatcher = fake
        return run

    yield start
    for folder in opened:
        folder.close()


def said(run: Run) -> str:
    return run.progress.console.file.getvalue()


def totals(run: Run) -> dict[str, int]:
    return run.summary()["ledger"]["all"]


def assert_closed(run: Run) -> None:
    """The books balance with nothing open, and no task of the run is left."""
    run.book.ledger.check(set(), set())
    counts = totals(run)
    ended = sum(n for name, n in counts.items() if name != "dispatched")
    assert ended == counts["dispatched"]
    assert run.dispatcher.cancelled and not run.dispatcher.playing
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_each_step_is_published_staged_and_loaded_and_no_version_overtakes_another(start):
    run = start()
    await asyncio.wait_for(run.main(), 30)
    acts = [name for name, _ in run.actors.log if name not in ("step", "record", "save", "saved")]
    stages = ["stage engine-0", "stage engine-1"]
    assert acts == ["snapshot", "publish", *stages, "engine-0", "engine-1"] * 5
    loads = [version for name, version in run.actors.log if name == "engine-0"]
    assert loads == [1, 2, 3, 4, 5]
    assert run.book.learner_version == run.fleet.window.newest == 5
    assert_closed(run)


async def test_what_each_step_computed_of_its_tokens_is_indexed(start):
    run = start(steps=3)
    await run.main()
    index = sqlite3.connect(run.folder.path / "trajectories.sqlite")
    assert index.execute("select * from learned order by step").fetchall() == [
        ("g000000-0", 1, 10),
        ("g000000-0", 2, 20),
        ("g000000-0", 3, 30),
    ]


async def test_the_learner_steps_on_while_its_last_version_is_on_its_way(start):
    run = start()
    run.actors.turns = 200
    await asyncio.wait_for(run.main(), 30)
    acts = [name for name, _ in run.actors.log]
    first = acts.index("snapshot")
    beside = acts[first : acts.index("snapshot", first + 1)]
    assert beside.index("step") < beside.index("engine-0"), acts


@pytest.mark.parametrize("layout", ["colocated", "elastic"])
async def test_where_engines_lend_their_devices_they_have_the_last_version_before_they_sleep(
    start, layout
):
    lent = {"standalone_engines": 1} if layout == "elastic" else {}
    run = start(layout=layout, **lent)
    run.actors.turns = 50
    await asyncio.wait_for(run.main(), 30)
    acts = [(name, what) for name, what in run.actors.log if name == "engine-1"]
    for index, act in enumerate(acts):
        if act == ("engine-1", "sleep"):
            assert acts[index + 1] == ("engine-1", "wake")
    assert [what for _, what in acts if isinstance(what, int)] == [1, 2, 3, 4, 5]


async def test_a_batch_is_whole_groups_each_trained_once(start):
    run = start()
    await asyncio.wait_for(run.main(), 30)
    batches = [groups for name, groups in run.actors.log if name == "step"]
    assert [len(b) for b in batches] == [3] * 5
    assert len(set(itertools.chain(*batches))) == 15
    assert totals(run)["trained"] == 15 * 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_no_sample_is_older_than_the_bound_and_none_is_lost(start, staleness, seed):
    mode = "in_flight" if staleness else "sync"
    run = start(seed=seed, mode=mode, max_staleness=staleness, steps=12)
    await asyncio.wait_for(run.main(), 30)
    assert sum(run.book.stats.staleness.values()) == 12 * 3 * 2
    assert max(run.book.stats.staleness) <= staleness
    assert_closed(run)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_groups_that_end_in_their_order_are_never_too_old_however_slow_a_weight_sync(
    start, staleness, seed
):
    mode = "in_flight" if staleness else "sync"
    run = start(
        mode=mode,
        max_staleness=staleness,
        steps=12,
        seed=seed,
        rollout={"max_in_flight_groups": 40},
    )
    run.actors.turns, run.dispatcher.in_order = 30, True
    await asyncio.wait_for(run.main(), 30)
    assert "stale:too_old" not in totals(run)
    assert max(run.book.stats.staleness) <= staleness


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("mode", "bound"), [("sync", 0), ("one_step", 1), ("dora", 2)])
async def test_where_versions_drain_nothing_is_too_old_and_each_group_has_one_version(
    start, mode, bound, seed
):
    run = start(seed=seed, mode=mode, steps=12, rollout={"max_in_flight_groups": 40})
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 12
    assert "stale:too_old" not in totals(run)
    assert max(run.book.stats.staleness) <= bound
    await run.fleet.settle()
    assert set(run.fleet.serves.values()) == {12}
    assert len(run.actors.weights()) <= 1, "weights of older versions are gone"
    assert all(spec.version == version for version, spec in run.dispatcher.played)
    assert_closed(run)


async def test_groups_wait_for_the_version_that_is_on_its_way_and_no_engine_loads_the_one_before(
    start,
):
    run = start(
        mode="dora", live_versions=4, engine={"count": 4}, steps=12,
        rollout={"max_in_flight_groups": 40},
    )  # fmt: skip
    run.actors.turns, run.dispatcher.in_order = 30, True
    await asyncio.wait_for(run.main(), 30)
    assert run.fleet.counts["rebalances/unserved"] == 0
    assert_closed(run)


async def test_groups_begin_once_a_batch_has_left_room_also_when_its_step_outran_the_version_before(
    start,
):
    """Step 3 ends while version 2 is on its way: its batch leaves room after everyone has looked for some."""
    run = start(mode="dora", live_versions=4, engine={"count": 4}, steps=4)
    publish, record, step = run.fleet.publish, run.learner.record, run.learner.step
    begun, ended = [], []

    async def until(so):
        for _ in range(5000):
            if so():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came")

    async def slowly(version, snapshot_ms):
        if version == 3:
            await until(lambda: len(run.dispatcher.played) > len(begun))
        return await publish(version, snapshot_ms)

    async def slow_record(number):
        if number == 2:  # all that can begin has begun before the batch leaves
            await until(lambda: 3 in ended)
            for _ in range(200):
                await asyncio.sleep(0)
            begun.extend(run.dispatcher.played)
        return await record(number)

    async def told_step(number, samples):
        if number == 4:  # its end has everyone look, too
            await until(lambda: len(run.dispatcher.played) > len(begun))
        result = await step(number, samples)
        ended.append(number)
        return result

    run.fleet.publish, run.learner.record, run.learner.step = slowly, slow_record, told_step
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 4
    assert_closed(run)


async def test_versions_live_side_by_side_while_an_older_one_has_stragglers(start):
    """A group of version 0 that takes long keeps an engine; later versions go on beside it."""
    slow = asyncio.Event()
    run = start(mode="dora", steps=4, rollout={"max_in_flight_groups": 40})
    play = run.dispatcher.play

    async def play_slowly(spec):
        if spec.id == "g000000":
            await slow.wait()
        return await play(spec)

    run.dispatcher.play = play_slowly
    running = asyncio.create_task(run.main())
    for _ in range(3000):
        await asyncio.sleep(0)
    assert set(run.fleet.serves.values()) == {0, 1}
    assert run.fleet.window.versions == (0, 1) and run.fleet.window.pending == 2
    assert run.book.learner_version == 2, "the learner waits: at 3 the straggler would be too old"
    slow.set()
    await asyncio.wait_for(running, 30)
    assert run.book.learner_version == 4
    assert_closed(run)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("mode", "bound"), [("one_step", 1), ("in_flight", 2), ("dora", 2)])
async def test_reused_groups_fill_a_step_and_are_booked_once(start, mode, bound, seed):
    """Over-sampled groups are trained on again, within the bound; the ledger counts them once."""
    run = start(
        seed=seed,
        mode=mode,
        max_staleness=2,
        steps=20,
        batch={"groups": 4, "group_size": 2, "reuse_ratio": 0.5},
        rollout={"max_in_flight_groups": 40},
    )
    await asyncio.wait_for(run.main(), 30)
    batches = [groups for name, groups in run.actors.log if name == "step"]
    assert [len(b) for b in batches] == [4] * 20
    assert all(len(set(b)) == 4 for b in batches), "no group is twice in a step"
    seen: set[str] = set()
    reused: list[int] = []
    for batch in batches:
        reused.append(sum(g in seen for g in batch))
        seen.update(batch)
    assert max(reused) <= 2 and sum(reused) > 0
    assert totals(run)["trained"] == 2 * len(seen) == 2 * (20 * 4 - sum(reused))
    lines = (run.folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["replay/reused_groups"] for line in lines] == reused
    assert max(run.book.stats.staleness) <= bound
    assert sum(run.book.stats.staleness.values()) == 20 * 4 * 2
    if mode != "in_flight":
        assert "stale:too_old" not in totals(run)
    assert_closed(run)


async def test_a_synchronous_run_starts_exactly_one_batch_per_version(start):
    run = start(mode="sync", max_staleness=0)
    await asyncio.wait_for(run.main(), 30)
    versions = [version for version, _ in run.dispatcher.played]
    assert [versions.count(v) for v in range(5)] == [3] * 5
    assert totals(run)["trained"] == totals(run)["dispatched"] - versions.count(5) * 2


async def test_never_more_groups_are_played_at_once_than_allowed(start):
    run = start(max_staleness=4, rollout={"max_in_flight_groups": 5})
    await asyncio.wait_for(run.main(), 30)
    assert run.dispatcher.most_at_once == 5


async def test_what_is_given_up_begins_anew_and_is_counted(start):
    """The first group hangs on version 0, which `discard` gives up when the window is full."""
    hung = []

    def outcome(spec):
        hung.extend([spec] if not hung else [])
        return "hang" if spec is hung[0] else "samples"

    run = start(mode="dora", live_versions=2, eviction="discard", outcome=outcome, steps=6)
    await asyncio.wait_for(run.main(), 30)
    assert run.dispatcher.given_up >= {hung[0].id}
    assert totals(run)["stale:evicted"] == 2 * len(run.dispatcher.given_up)
    again = [spec for _, spec in run.dispatcher.played if spec.task is hung[0].task]
    assert len(again) == 2 and again[1].version > again[0].version
    assert_closed(run)


@pytest.mark.parametrize("layout", ["colocated", "elastic"])
@pytest.mark.parametrize("mode", ["sync", "one_step", "in_flight", "dora"])
async def test_engines_sleep_exactly_while_the_learner_steps_on_their_devices(start, layout, mode):
    run = start(mode=mode, layout=layout, engine={"count": 2})
    await asyncio.wait_for(run.main(), 30)
    acts = [(name, detail) for name, detail in run.actors.log if name != "save"]
    slept: set[str] = set()
    for name, detail in acts:
        if detail == "sleep":
            slept.add(name)
        elif detail == "wake":
            slept.remove(name)
        elif name == "step":
            assert slept == {"engine-1"} | ({"engine-0"} if layout == "colocated" else set())
        elif name.startswith("engine"):
            assert name not in slept, "no weights are loaded into an engine that sleeps"
    assert not slept
    assert_closed(run)


async def test_a_version_without_an_engine_waits_while_many_sleep(start):
    """Elastic, two versions, one engine awake, which plays the older: groups of the newer begin later."""
    run = start(
        mode="dora",
        live_versions=2,
        layout="elastic",
        engine={"count": 2},
        steps=8,
        outcome=lambda spec: "filtered" if int(spec.id[1:]) % 3 else "samples",
    )
    await asyncio.wait_for(run.main(), 30)
    assert run.fleet.counts["rebalances/unserved"] <= 8 * 20
    assert_closed(run)


async def test_tasks_come_from_the_environments_by_weight(start):
    run = start(steps=10)
    await asyncio.wait_for(run.main(), 30)
    envs = [spec.env for _, spec in run.dispatcher.played]
    assert abs(envs.count("sensors") - 2 * envs.count("calculator")) <= 2


async def test_filtered_faulty_and_lost_groups_are_booked_and_replaced(start):
    kinds = ["samples", "filtered", "fault", "lost"]
    run = start(outcome=lambda spec: kinds[int(spec.id[1:]) % 4])
    await asyncio.wait_for(run.main(), 30)
    counts = totals(run)
    assert counts["trained"] == 30
    for outcome in ("filtered:zero_variance", "failed:env_fault", "failed:controller_fault"):
        assert counts[outcome] >= 2, outcome
    assert run.summary()["faults"]["the world is gone"] == counts["failed:env_fault"]
    assert said(run).count("the world is gone") == 1, "each new fault is said once"
    assert_closed(run)


async def test_an_error_of_our_own_in_a_group_ends_the_run(start):
    def outcome(spec):
        return "samples" if spec.id != "g000004" else 1 / 0

    run = start(outcome=outcome)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)


async def test_groups_are_counted_per_version_as_they_come_and_go(start):
    """What admission is told is what a count of all groups in flight would say."""
    run = start(mode="dora", steps=8, rollout={"max_in_flight_groups": 40})
    seen: list[int] = []
    backlog = run.backlog

    def checked(window):
        found = backlog(window)
        counted = Counter(spec.version for spec in run.book.in_flight.values())
        waiting = Counter(min(g.versions) for g in (*run.book.queue.groups, *run.book.training))
        assert dict(found.groups) == dict(counted)
        assert Counter(found.buffered) == waiting
        seen.append(sum(counted.values()))
        return found

    run.backlog = checked
    await asyncio.wait_for(run.main(), 30)
    assert max(seen) > 3 and not run.book.playing


async def test_a_run_of_nothing_but_faults_ends_with_the_last_of_them(start):
    soon = {"cooldown_seconds": 0.02}
    env = [{"id": "calculator", "breaker": soon}, {"id": "sensors", "breaker": soon}]
    run = start(outcome=lambda spec: "fault", env=env)
    sentence = "no environment has worked so far, most recently: the world is gone"
    with pytest.raises(RunError, match=sentence):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)


async def test_controllers_that_die_under_every_group_end_the_run_with_where_to_look(start):
    run = start(outcome=lambda spec: "dead")
    sentence = r"the last 50 groups all ended in faults, most recently: .*logs/controller-"
    with pytest.raises(RunError, match=sentence):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)


@pytest.mark.heavy
async def test_an_environment_that_fails_for_a_while_rests_and_comes_back(start):
    """Nothing of it is trained on while it fails; the others go on, and the books balance."""
    ends = Counter()

    def outcome(spec):
        ends[spec.env] += 1
        return "fault" if spec.env == "sensors" and 6 < ends["sensors"] <= 14 else "samples"

    breaker = {"faults": 6, "share": 0.3, "cooldown_seconds": 0.02}
    env = [{"id": "calculator"}, {"id": "sensors", "breaker": breaker}]
    run = start(outcome=outcome, steps=60, env=env)
    run.dispatcher.pace = 0.0005
    await asyncio.wait_for(run.main(), 60)
    assert_closed(run)
    text = said(run)
    assert "environment 'sensors': " in text and "gets no new groups for 0.02 s" in text
    assert "environment 'sensors' works again" in text
    books = run.summary()["ledger"]["sensors"]
    assert 6 <= books["failed:env_fault"] <= 16
    assert books["trained"] > 20, "before and after"
    lines = [
        json.loads(line) for line in (run.folder.path / "metrics.jsonl").open(encoding="utf-8")
    ]
    levels = {line["env/sensors/breaker"] for line in lines if "env/sensors/breaker" in line}
    assert {0.0, 1.0} <= levels
    assert lines[-1]["mix/sensors/asked"] == 0.5
    events = [
        json.loads(line) for line in (run.folder.path / "events.jsonl").open(encoding="utf-8")
    ]
    assert sum(event["lane"] == "supervision" for event in events) >= 3


async def test_while_every_environment_rests_the_run_waits_for_a_probe(start):
    broken = True
    run = start(
        outcome=lambda spec: "fault" if broken and run.task_source.judged else "samples",
        env=[{"id": "calculator", "breaker": {"cooldown_seconds": 0.05}}],
    )
    running = asyncio.create_task(run.main())
    async with asyncio.timeout(20):
        while not run.task_source.open_breakers:
            await asyncio.sleep(0.001)
        assert "resting after faults: calculator" in run.watch._learner_waits_for()
        broken = False
        await running
    assert run.book.learner_version == 5
    assert_closed(run)


async def test_a_run_in_which_nothing_moves_says_what_it_waits_for(start):
    run = start(outcome=lambda spec: "hang", timeouts={"stall_seconds": 0.3})
    with pytest.raises(
        RunError,
        match=r"nothing finished .* learner waits for a batch: 0 of 3 .*"
        r"suspect: g000000.0 \(\w+, version 3\) in tool at host-0 for 99 s",
    ):
        await asyncio.wait_for(run.main(), 30)
    assert "waiting: g000000.0" in said(run)
    state = read_status(run.folder.path)
    assert state.in_flight == totals(run)["dispatched"] and state.window == (0,)
    assert sum(state.counts[env]["tool"] for env in state.counts) == len(state.waiting) > 0
    assert totals(run)["cancelled"] == totals(run)["dispatched"] > 0
    assert_closed(run)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fail", "error", "sentence"),
    [
        ({"step": FakePool.HANG}, RunError, "learner step 1: no end within 0.3 s"),
        ({"step": RayActorError()}, RunError, "learner step 1: "),
        (
            {"publish": RuntimeError("disk full")},
            SyncError,
            "could not publish version 1: disk full",
        ),
        ({"snapshot": MemoryError("full")}, SyncError, "could not copy the weights of version 1"),
        ({"stage engine-1": RayActorError()}, SyncError, "engine-1 could not stage version 1"),
        ({"engine-1": RayActorError()}, SyncError, "engine-1 could not load version 1"),
        (
            {"engine-0": FakePool.HANG, "engine-1": FakePool.HANG},
            SyncError,
            "engine-1 did not load version 1 within 0.3 s",
        ),
        ({"save": FakePool.HANG}, RunError, "checkpoint of step 5: no end within 0.3 s"),
        ({"saved": FakePool.HANG}, RunError, "checkpoint of step 5: no end within 0.3 s"),
        ({"save": CheckpointError("no room")}, CheckpointError, "no room"),
        ({"saved": CheckpointError("no room")}, CheckpointError, "no room"),
    ],
)
async def test_whatever_part_fails_the_run_ends_with_a_sentence_and_closed_books(
    start, fail, error, sentence
):
    timeouts = {"step_seconds": 0.3, "load_seconds": 0.3, "stall_seconds": 20}
    run = start(fail=fail, timeouts=timeouts)
    with pytest.raises(error) as caught:
        await asyncio.wait_for(run.main(), 30)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert_closed(run)


async def test_a_disk_that_is_full_ends_the_run_with_that_and_closed_books(start, monkeypatch):
    run = start()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.folder, "experts", full)
    with pytest.raises(OSError, match="No space left on device"):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)


async def test_a_slow_learner_is_no_stall(start):
    run = start(fail={"step": FakePool.HANG}, timeouts={"stall_seconds": 0.1, "step_seconds": 0.6})
    with pytest.raises(RunError, match="learner step 1"):
        await asyncio.wait_for(run.main(), 30)


async def test_an_interrupted_run_books_what_it_gave_up_as_cancelled(start):
    run = start(outcome=lambda spec: "hang")
    running = asyncio.create_task(run.main())
    while not run.dispatcher.playing:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert totals(run)["cancelled"] == totals(run)["dispatched"] > 0
    assert_closed(run)


async def test_the_run_folder_tells_the_run(start):
    run = start(checkpoint_every=2)
    await asyncio.wait_for(run.main(), 30)
    folder = run.folder.path
    metrics = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5]
    for values in metrics:
        assert values["rollout/all/reward"] == 0.5
        assert values["staleness/max"] <= 1
        assert values["selection/all/trained/trajectories"] == 6 * values["step"]
        assert values["selection/all/trained/tokens"] == 40
        assert values["time/total_seconds"] >= values["time/learner_seconds"] >= 0
    acts = [(name, path) for name, path in run.actors.log if name in ("save", "saved")]
    paths = [str(folder.resolve() / "checkpoints" / f"step_{n}") for n in (2, 4, 5)]
    assert acts == [act for path in paths for act in (("save", path), ("saved", None))]
    events = [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    engines = {"engine-0", "engine-1"}
    assert {e["lane"] for e in events} == {"learner", "sync", "rollout", "window", *engines}
    for engine in engines:
        names = [e["name"] for e in events if e["lane"] == engine]
        assert names == [
            "version 0",
            *(f"{what} {v}" for v in range(1, 6) for what in ("load version", "version")),
        ]
    experts = [
        json.loads(line)
        for line in (folder / "experts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [one["step"] for one in experts] == [1, 2, 3, 4, 5]
    assert experts[0]["loads"] == [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]
    state = read_status(folder)
    assert {one.name: one.pid for one in state.actors} == {"engine-0": 1234, "engine-1": 1234}
    index = sqlite3.connect(folder / "trajectories.sqlite")
    finished = totals(run)["dispatched"] - totals(run)["cancelled"]
    (count,) = index.execute("select count(*) from trajectories").fetchone()
    assert count >= finished, "what was buffered in the end is indexed and booked as cancelled"
    assert sum("step " in line for line in said(run).splitlines()) == 5


async def test_training_goes_on_while_a_checkpoint_is_written(start):
    run = start(checkpoint_every=2)
    await asyncio.wait_for(run.main(), 30)
    acts = [name for name, _ in run.actors.log if name in ("step", "save", "saved")]
    assert " ".join(acts) == "step step save step step saved save step saved save saved"


async def test_a_checkpoint_that_fails_ends_the_run_only_if_it_is_the_last(start):
    run = start(checkpoint_every=2, fail={"saved": CheckpointError("step_N: no space")})
    with pytest.raises(CheckpointError, match="step_N: no space"):
        await asyncio.wait_for(run.main(), 30)
    assert said(run).count("step_N: no space; the run goes on without it") == 2
    assert run.book.learner_version == 5
    assert_closed(run)


async def test_evaluations_stand_before_and_after_and_count_faults(start):
    run = start(
        eval={"before": True, "after": True, "tasks": 4},
        outcome=lambda spec: "samples" if spec.train or spec.env == "sensors" else "fault",
    )
    await asyncio.wait_for(run.main(), 30)
    assert run.book.stats.evals == {"before": {"sensors": 1.0}, "after": {"sensors": 1.0}}
    assert run.book.stats.eval_faults == {"before": 4, "after": 4}
    assert run.summary()["eval"]["faults"] == {"before": 4, "after": 4}
    trained = [spec.task.id for _, spec in run.dispatcher.played if spec.train]
    held_out = {spec.task.id for _, spec in run.dispatcher.played if not spec.train}
    assert held_out.isdisjoint(trained)


BESIDE = {"before": False, "after": True, "tasks": 4, "every": 2, "share": 0.5}


def rows(run: Run) -> list[dict]:
    text = (run.folder.path / "evaluations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["sync", "one_step", "in_flight", "dora"])
async def test_evaluations_go_on_beside_training_each_trajectory_on_one_version(start, mode, seed):
    run = start(mode=mode, seed=seed, steps=9, eval=BESIDE | {"samples_per_task": 2})
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 9
    found = rows(run)
    assert [row["when"] for row in found][-1] == "after"
    skipped = [line for line in said(run).splitlines() if "is skipped: that of step" in line]
    assert len(found) + len(skipped) == 5 and len(found) >= 2
    for row in found:
        assert row["step"] <= row["version"] <= row["last_version"] <= 9
        assert 0 <= row["lag"] == row["lag"] and row["tasks"] == 8
        assert row["env"]["calculator"]["pass_at"] == {"1": 0.5, "2": 1.0}
    held_out = [(version, spec) for version, spec in run.dispatcher.played if not spec.train]
    if mode != "in_flight":
        beside = [(v, s) for v, s in held_out if "after" not in s.id]
        assert beside and all(spec.version == version for version, spec in beside)
    assert not run.book.heldout
    assert len(run.summary()["evaluations"]) == len(found)
    assert_closed(run)


async def test_an_evaluation_plays_no_more_at_once_than_its_share_and_leaves_training_its_own(
    start,
):
    run = start(steps=6, eval=BESIDE | {"tasks": 30})
    most = {True: 0, False: 0}
    play = run.dispatcher.play

    async def watched(spec):
        if "after" not in spec.id:
            playing = [*run.dispatcher.playing.values(), spec]
            count = sum(one.train == spec.train for one in playing)
            most[spec.train] = max(most[spec.train], count)
        return await play(spec)

    run.dispatcher.play = watched
    await asyncio.wait_for(run.main(), 30)
    # Training has 6 groups of 2 at most on their way, two batches of 3.
    assert most == {True: 6, False: 6}
    assert_closed(run)


async def test_an_evaluation_that_hangs_is_given_up_and_the_run_goes_on(start):
    run = start(
        steps=4,
        outcome=lambda spec: "samples" if spec.train else "hang",
        eval=BESIDE | {"after": False},
        timeouts={"stall_seconds": 0.3},
    )
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 4
    sentence = "the evaluation of step 2 is given up: no held-out episode ended for 0.3 s"
    assert sentence in said(run)
    assert not (run.folder.path / "evaluations.jsonl").exists()
    assert_closed(run)


async def test_a_run_that_is_asked_to_end_does_not_wait_for_its_evaluation(start):
    run = start(steps=50, outcome=lambda spec: "samples" if spec.train else "hang", eval=BESIDE)
    running = asyncio.create_task(run.main())
    while run.book.learner_version < 4:
        await asyncio.sleep(0)
    assert run.stop()
    with pytest.raises(Interrupted):
        await asyncio.wait_for(running, 30)
    assert "is given up: the run was asked to end" in said(run)
    assert_closed(run)


async def test_held_out_groups_on_a_version_that_is_given_up_begin_anew(start):
    hung: list[str] = []

    def outcome(spec):
        if not spec.train and not hung:
            hung.append(spec.id)
            return "hang"
        return "samples"

    run = start(
        mode="dora", live_versions=2, eviction="discard", outcome=outcome, steps=9, eval=BESIDE
    )
    await asyncio.wait_for(run.main(), 30)
    assert hung[0] in run.dispatcher.given_up
    assert f"{hung[0]}-again" in [spec.id for _, spec in run.dispatcher.played]
    assert rows(run)[0]["env"]["calculator"]["tasks"] == 4
    assert_closed(run)


async def test_the_best_checkpoint_of_the_evaluated_steps_is_kept_and_the_others_go(start):
    run = start(steps=9, eval=BESIDE | {"after": True}, checkpoint_minutes=0)
    act, play = run.actors.act, run.dispatcher.play

    async def write(name, detail):
        await act(name, detail)
        if name == "save":
            folder = Path(detail)
            partial = folder.with_name(f"{folder.name}.partial")
            make_room(folder, partial)
            step = int(folder.name.removeprefix("step_"))
            complete(partial, folder, Record({}, updates=step, version=step, past_versions=[]))

    async def fail(spec):
        """Held-out tasks pass at the first evaluation beside training alone."""
        played = await play(spec)
        if spec.train or "step_2" in spec.id or played is None:
            return played
        failed = [replace(m, reward=0.0, rewards={"solved": 0.0}) for m in played.report.members]
        return replace(played, report=replace(played.report, members=tuple(failed)))

    run.actors.act, run.dispatcher.play = write, fail
    await asyncio.wait_for(run.main(), 30)
    checkpoints = run.folder.path / "checkpoints"
    assert (checkpoints / "best").resolve().name == "step_2"
    assert {p.name for p in checkpoints.iterdir()} == {"best", "step_2", "step_9"}
    assert run.summary()["best"] == {"step": 2, "pass_rate": 1.0}
    assert said(run).count("the best checkpoint is that of step 2") == 1
    assert_closed(run)


async def test_environments_that_are_evaluated_only_are_never_trained_on(start):
    run = start(eval=BESIDE | {"env": [{"id": "orders", "noise": {"level": 2}}]})
    await asyncio.wait_for(run.main(), 30)
    played = [spec for _, spec in run.dispatcher.played if spec.env == "orders"]
    assert played and not any(spec.train for spec in played)
    assert {spec.task.noise for spec in played} == {2}
    assert "orders" in rows(run)[0]["env"]
    assert_closed(run)


async def test_groups_whose_samples_are_gone_with_a_node_are_booked_and_others_take_their_place(
    start,
):
    run = start()
    run.actors.gone = {"g000001", "g000004"}
    await asyncio.wait_for(run.main(), 30)
    trained = set(itertools.chain(*(groups for name, groups in run.actors.log if name == "step")))
    assert len(trained) == 15 and not trained & run.actors.gone
    assert totals(run)["failed:node_lost"] == 4
    assert "the samples of" in said(run)
    assert_closed(run)


async def test_a_run_whose_engines_are_all_gone_ends_with_a_sentence_and_closed_books(start):
    run = start(fail={"engine-0": ActorDiedError(), "stage engine-1": ActorDiedError()})
    with pytest.raises(SyncError, match=r"no engine is left: engine-0 died"):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)


async def test_a_run_that_loses_its_learners_node_says_so(start, monkeypatch):
    monkeypatch.setattr("rl.fleet.node_watch.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("rl.fleet.node_watch.alive_nodes", dict)
    run = start(outcome=lambda spec: "hang")
    run.actors.node_of = {"learner": "a"}
    with pytest.raises(NodesLost, match=r"node a is gone: learner; without its learner"):
        await asyncio.wait_for(run.main(), 30)
    assert_closed(run)
    assert '"lane": "supervision", "name": "node a"' in (
        run.folder.path / "events.jsonl"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_evaluation_without_the_learners_node_ends_with_the_run(start, monkeypatch, when):
    monkeypatch.setattr("rl.fleet.node_watch.LOOK_SECONDS", 0.0)
    run = start(
        outcome=lambda spec: "samples" if spec.train else "hang",
        eval={"before": False, "after": False, "tasks": 4} | {when: True},
    )
    run.actors.node_of = {"learner": "a"}
    looks: list[bool] = []

    def alive() -> dict[str, str]:
        looks.append(any(not spec.train for _, spec in run.dispatcher.played))
        # Its address is known from the first look.
        return {} if looks[-1] and len(looks) > 1 else {"a": "10.0.0.7"}

    monkeypatch.setattr("rl.fleet.node_watch.alive_nodes", alive)
    with pytest.raises(NodesLost, match=r"node 10.0.0.7 is gone: learner; without its learner"):
        await asyncio.wait_for(run.main(), 30)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_after_so_many_minutes_without_a_checkpoint_the_next_step_has_one_until_a_later_is_there(
    start, monkeypatch
):
    now = [0.0]
    clock = SimpleNamespace(time=time.time, monotonic=lambda: now[0])
    monkeypatch.setattr("rl.loop.checkpoints.time", clock)
    run = start(checkpoint_every=4, checkpoint_minutes=2)
    step = run.learner.step

    async def minute_long(number, samples):
        now[0] += 60
        return await step(number, samples)

    run.learner.step = minute_long
    removed: list[str] = []
    monkeypatch.setattr("rl.loop.checkpoints.remove", lambda path: removed.append(path.name))
    await asyncio.wait_for(run.main(), 30)
    saved = [path.rpartition("/")[2] for name, path in run.actors.log if name == "save"]
    assert saved == ["step_2", "step_4", "step_5"], "4 and 5 by their step, 2 by the clock"
    assert removed == ["step_2"]


async def test_a_default_run_loses_minutes_at_most():
    assert 0 < RunConfig.model_validate(SETTINGS).checkpoint_minutes <= 15


async def test_a_run_whose_steps_are_made_plays_its_evaluation_alone(start):
    run = start(eval={"before": True, "after": True, "tasks": 4}, steps=3)
    run.book.learner_version, run.resumed = 3, SimpleNamespace(step=3, checkpoint="step_3")
    await asyncio.wait_for(run.main(), 30)
    assert not any(spec.train for _, spec in run.dispatcher.played)
    assert set(run.book.stats.evals) == {"after"}


@pytest.mark.parametrize("act", ["engine-1", "stage engine-1"])
async def test_an_engine_that_hangs_is_ended_and_leaves_the_fleet_as_a_dead_one(start, act):
    run = start(fail={act: FakePool.HANG}, timeouts={"load_seconds": 0.3, "stall_seconds": 20})
    await asyncio.wait_for(run.main(), 30)
    assert run.actors.ended == ["engine-1"] and set(run.fleet.serves) == {"engine-0"}
    assert run.fleet.counts["engines_lost"] == 1
    what = "stage" if act.startswith("stage") else "load"
    sentence = f"engine-1 did not {what} version 1 within 0.3 s: it hangs, and is ended"
    assert sentence in said(run) and sentence in run.node_journal.sentences[0]
    assert run.book.learner_version == 5
    assert_closed(run)


async def test_an_engine_that_does_not_go_to_sleep_counts_as_dead_too(start):
    timeouts = {"load_seconds": 0.3, "stall_seconds": 20}
    run = start(layout="elastic", standalone_engines=1, timeouts=timeouts)
    act = run.actors.act

    async def hangs(name, detail):
        await (asyncio.Event().wait() if detail == "sleep" else act(name, detail))

    run.actors.act = hangs
    await asyncio.wait_for(run.main(), 30)
    assert run.actors.ended == ["engine-1"] and set(run.fleet.serves) == {"engine-0"}
    assert "engine-1 did not sleep within 0.3 s" in said(run)
    assert_closed(run)


async def test_an_engine_that_hangs_while_nothing_is_loaded_is_ended_and_replaced_too(
    start, monkeypatch
):
    """As in an evaluation: no version is staged or loaded then."""
    monkeypatch.setattr(node_watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(node_watch, "alive_nodes", lambda: {"a": "10.0.0.5"})
    run = start(fail={"pulse engine-1": FakePool.HANG}, timeouts={"load_seconds": 0.3})
    run.actors.node_of = {"engine-0": "a", "engine-1": "a"}
    started: list[str] = []

    async def add_engine(name: str) -> str:
        started.append(name)
        run.actors.add(name)
        return "10.0.0.5"

    run.restarts.cluster.add_engine = add_engine
    watching = asyncio.create_task(run.nodes.watch())
    while not run.actors.ended:
        await asyncio.sleep(0.01)
    run.actors.fail["pulse engine-1"] = ActorDiedError()
    while "has taken the place of engine-1" not in said(run):
        assert not watching.done(), watching
        await asyncio.sleep(0.01)
    watching.cancel()
    assert run.actors.ended == ["engine-1"] and started == ["engine-2"]
    assert set(run.fleet.serves) == {"engine-0", "engine-2"}
    assert said(run).count("engine-1 did not answer within 0.3 s: it hangs, and is ended") == 1
    await asyncio.gather(watching, return_exceptions=True)
    await run.restarts.close()


async def test_groups_that_never_differ_are_said_and_then_end_the_run(start, monkeypatch):
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_END", 20)
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_END_TIMES", 1)
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_SAID", 5)
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_SAID_TIMES", 0)
    run = start(outcome=lambda spec: "filtered", env=[{"id": "calculator"}])
    sentence = "the last 20 groups gave nothing to learn from"
    with pytest.raises(RunError, match=sentence) as caught:
        await asyncio.wait_for(run.main(), 30)
    assert "batch.filter_zero_variance = false" in str(caught.value)
    note = "the last 5 groups of environment 'calculator' gave nothing to learn from"
    assert said(run).replace("\n", " ").count(note) == 1
    assert_closed(run)


async def test_an_environment_that_never_differs_beside_one_that_does_is_said_and_no_more(
    start, monkeypatch
):
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_SAID", 3)
    monkeypatch.setattr("rl.loop.rollouts.UNUSED_SAID_TIMES", 0)
    run = start(outcome=lambda spec: "samples" if spec.env == "sensors" else "filtered")
    await asyncio.wait_for(run.main(), 30)
    told = said(run).replace("\n", " ")
    assert told.count("groups of environment 'calculator' gave nothing to learn from") == 1
    assert "environment 'sensors' gave" not in told
    assert run.book.learner_version == 5


async def test_a_collapse_ends_the_run_with_a_checkpoint_and_a_sentence(start):
    """Every step's mean reward is 0.5, which the floor calls a collapse."""
    run = start(stop={"on_collapse": "end", "reward": {"below": 0.6, "steps": 2}})
    with pytest.raises(RunError) as error:
        await asyncio.wait_for(run.main(), 30)
    sentence = (
        "training ends after step 2 of 5: it has collapsed: the mean reward was below 0.6 in each of 2 "
        "steps, 0.5 at step 2 (stop.reward)"
    )
    assert str(error.value).startswith(sentence)
    saved = [path for name, path in run.actors.log if name == "save"]
    assert [path.rpartition("/")[2] for path in saved] == ["step_2"]
    assert run.actors.log.count(("saved", None)) == 1
    assert run.book.learner_version == 2 and run.summary()["ended_early"] == sentence
    assert_closed(run)


async def test_a_collapse_is_told_once_where_it_only_warns(start):
    run = start(stop={"reward": {"below": 0.6, "steps": 2}})
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 5 and run.summary()["ended_early"] == ""
    assert said(run).count("warning: training may be collapsing at step 2") == 1
    assert said(run).count("may be collapsing") == 1


async def test_a_budget_ends_training_and_the_run_plays_its_last_evaluation(start):
    run = start(stop={"max_steps": 3}, eval={"before": False, "after": True, "tasks": 4})
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version == 3
    assert "training ends after step 3 of 5: the budget is used up: 3 steps" in said(run)
    assert [path.rpartition("/")[2] for n, path in run.actors.log if n == "save"] == ["step_3"]
    assert "after" in run.book.stats.evals
    assert_closed(run)


async def test_training_ends_when_evaluations_get_no_better(start):
    """All of them have the same pass rate, and the first is the best."""
    run = start(steps=60, stop={"patience": 2}, eval=BESIDE | {"every": 1, "after": False})
    await asyncio.wait_for(run.main(), 30)
    assert run.book.learner_version < 60
    assert "in 2 evaluations (stop.patience = 2)" in said(run)
    assert len(rows(run)) >= 3
    assert_closed(run)


@pytest.mark.parametrize("on_collapse", ["end", "warn"])
async def test_a_policy_after_which_no_batch_fills_has_collapsed_though_no_step_comes(
    start, on_collapse
):
    """From version 2 on all rewards of each group are equal."""
    run = start(
        steps=40,
        outcome=lambda spec: "filtered" if run.book.learner_version >= 2 else "samples",
        stop={"on_collapse": on_collapse, "zero_variance": {"steps": 5}},
    )
    run.rollouts.unused_end = 60
    with pytest.raises(RunError) as error:
        await asyncio.wait_for(run.main(), 30)
    what = "groups since then gave nothing to learn from, so no batch fills (stop.zero_variance)"
    if on_collapse == "end":
        assert str(error.value).startswith(
            f"training ends after step {run.book.learner_version} of 40: it has collapsed: "
        )
        assert what in str(error.value)
        saved = [folder for name, folder in run.actors.log if name == "save"]
        assert [Path(str(f)).name for f in saved] == [f"step_{run.book.learner_version}"]
        assert run.stops.collapsed and run.summary()["ended_early"] == run.stops.sentence
    else:
        assert "the last 60 groups gave nothing" in str(error.value)
        assert said(run).count(what) == 1
    assert_closed(run)
