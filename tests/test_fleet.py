"""The fleet: the order in which engines change version, and what happens to the weights' files."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakePool
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from rl.actors.controller import ControllerActor
from rl.actors.heartbeat import Heartbeat
from rl.actors.local_handle import local_handle
from rl.fleet.file_transport import FileTransport
from rl.fleet.fleet import Fleet
from rl.fleet.weight_sync import SyncError, SyncTimes, WeightSync
from rollout.placement import InProgress
from rollout.scheduler import PRESSURE_PAUSE, Backlog, Limits
from rollout.vllm_engine import LoadTimes
from rollout.window import Rules, Window

LIMITS = Limits(batch_groups=2, group_size=1, target=8, engine_limit=99)
DORA = Rules(live=2, max_staleness=2)


class Controller(ControllerActor):
    """Writes down what it is told, into the log of the pool. fail: what asking it to leave raises; of a
    list, one after the other."""

    def __init__(self, pool: FakePool, places: list[InProgress], fail: Any = None) -> None:
        self.pool, self.places, self.fail = pool, places, fail

    async def serve(self, versions: dict[str, int | None]) -> None:
        self.pool.log.append(("serve", dict(versions)))

    async def lose(self, engines: list[str]) -> None:
        self.pool.log.append(("lose", engines))

    async def leave(self, engines: list[str], moves: dict[str, str]) -> None:
        self.pool.log.append(("leave", (engines, moves)))
        if isinstance(self.fail, list):
            if self.fail:
                raise self.fail.pop()
        elif self.fail is not None:
            raise self.fail

    async def in_progress(self) -> list[InProgress]:
        return self.places


def fleet(
    tmp_path,
    places: list[InProgress],
    rules: Rules = DORA,
    fail: Any = None,
    shared_engines: tuple[str, ...] = (),
    adapters: bool = False,
) -> Fleet:
    pool = FakePool()
    pool.controllers = {"controller-0": local_handle(Controller(pool, places, fail))}
    counts: dict[int, int] = {}
    for one in places:
        counts[one.version] = counts.get(one.version, 0) + 1
    made: Fleet
    made = Fleet(
        pool,
        WeightSync(pool, FileTransport(pool, tmp_path), 5.0),
        rules,
        LIMITS,
        SimpleNamespace(
            backlog=lambda window: Backlog(window, 1, counts, counts, {}),
            evict=lambda versions: pool.log.append(("evict", versions)),
        ),
        shared_engines,
        adapters=adapters,
    )
    return made


async def publish(made: Fleet, version: int) -> SyncTimes:
    """The learner has made a version."""
    return await made.publish(version, await made.sync.snapshot(version))


async def test_an_engine_stages_before_it_is_left_loads_after_and_is_opened_in_the_end(tmp_path):
    places = [InProgress(f"t{n}", 0, f"engine-{n % 2}", n) for n in range(4)]
    made = fleet(tmp_path, places)
    await made.start()
    made.actors.log.clear()
    times = await publish(made, 1)
    acts = [name for name, _ in made.actors.log]
    assert acts == ["snapshot", "publish", "stage engine-1", "leave", "engine-1", "serve"]
    assert (times.staging_ms, times.pause_ms) == ((5.0,), (2.0,))
    left, moves = dict(made.actors.log)["leave"]
    assert left == ["engine-1"] and moves == {"t1": "engine-0", "t3": "engine-0"}
    assert made.serves == {"engine-0": 0, "engine-1": 1}
    assert made.window == Window((0, 1))
    assert made.actors.log[-1] == ("serve", {"engine-0": 0, "engine-1": 1})
    assert (made.counts["weight_moves"], made.counts["request_moves"]) == (1, 2)


async def test_weights_are_kept_while_their_version_lives(tmp_path):
    places = [InProgress("t0", 0, "engine-0")]
    made = fleet(tmp_path, places)
    await made.start()
    await publish(made, 1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "version-0.safetensors",
        "version-1.safetensors",
    }
    made.actors.log.clear()
    await publish(made, 2)
    staged = [act for act in made.actors.log if act[0].startswith("stage")]
    assert staged == [("stage engine-0", 2)], "the engine of the version that drains next"
    assert made.window == Window((0, 1), pending=2), "version 0 has not drained"
    places.clear()
    made.groups.backlog = lambda window: Backlog(window, 2, {}, {}, {})
    await made.rebalance("drained")
    assert made.window == Window((1, 2))
    await made.settle()
    assert set(made.serves.values()) == {2}
    assert {path.name for path in tmp_path.iterdir()} == {"version-2.safetensors"}


async def test_in_place_every_engine_loads_and_no_controller_is_asked_to_leave(tmp_path):
    places = [InProgress("t0", 0, "engine-0")]
    made = fleet(tmp_path, places, Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    times = await publish(made, 1)
    stages = ["stage engine-0", "stage engine-1"]
    acts = ["serve", "snapshot", "publish", *stages, "engine-0", "engine-1", "serve"]
    assert [name for name, _ in made.actors.log] == acts
    assert times.pause_ms == (2.0, 2.0) and times.publication.bytes == 7
    assert list(tmp_path.iterdir()) == [], "nobody will load it again"


async def test_a_dead_controller_has_nothing_to_move_and_a_deaf_one_ends_the_run(tmp_path):
    places = [InProgress(f"t{n}", 0, f"engine-{n % 2}", n) for n in range(4)]
    made = fleet(tmp_path, places, fail=RayActorError())
    await publish(made, 1)
    assert made.serves == {"engine-0": 0, "engine-1": 1}
    deaf = fleet(tmp_path, places, fail=TimeoutError())
    with pytest.raises(SyncError, match=r"controller did not answer within 5 s \(asked to leave\)"):
        await publish(deaf, 1)


async def test_a_controller_that_cannot_be_reached_for_a_moment_is_asked_again(
    tmp_path, monkeypatch
):
    """It may live: its requests have to leave before the weights change under them."""
    monkeypatch.setattr("rl.nodes.nodes.AGAIN_SECONDS", 0.0)
    places = [InProgress(f"t{n}", 0, f"engine-{n % 2}", n) for n in range(4)]
    away = ActorUnavailableError("RPC error", b"0" * 16)
    made = fleet(tmp_path, places, fail=[away, away])
    await publish(made, 1)
    acts = [name for name, _ in made.actors.log]
    assert acts[-5:] == ["leave", "leave", "leave", "engine-1", "serve"]


async def test_who_serves_what_is_told_anew_after_a_rebalance_and_not_in_the_middle(tmp_path):
    made = fleet(tmp_path, [])
    async with made.lock:
        made.serves["engine-1"] = None
        telling = asyncio.create_task(made.push_engine_map())
        await asyncio.sleep(0.01)
        assert made.actors.log == []
        made.serves["engine-1"] = 1
    await telling
    assert made.actors.log == [("serve", {"engine-0": 0, "engine-1": 1})]


async def test_engines_on_the_learners_devices_sleep_while_it_steps(tmp_path):
    """Elastic: what the lent engine holds moves to the one that stays, which serves the same version."""
    places = [InProgress(f"t{n}", 0, f"engine-{n % 2}", n) for n in range(4)]
    made = fleet(tmp_path, places, shared_engines=("engine-1",))
    await made.start()
    made.actors.log.clear()
    await made.sleep_shared()
    awake = {"engine-0": 0, "engine-1": None}
    moves = {"t1": "engine-0", "t3": "engine-0"}
    assert made.actors.log == [("serve", awake), ("leave", ([], moves)), ("engine-1", "sleep")]
    assert made.served(0)
    made.actors.log.clear()
    await made.wake_shared()
    assert made.actors.log == [("engine-1", "wake"), ("serve", {"engine-0": 0, "engine-1": 0})]


async def test_where_all_engines_are_lent_everything_waits_in_its_place(tmp_path):
    places = [InProgress("t0", 0, "engine-0")]
    made = fleet(tmp_path, places, shared_engines=("engine-0", "engine-1"))
    await made.start()
    assert made.admit()
    made.actors.log.clear()
    await made.sleep_shared()
    nobody = {"engine-0": None, "engine-1": None}
    assert made.actors.log == [("serve", nobody), ("engine-0", "sleep"), ("engine-1", "sleep")]
    assert not made.admit() and not made.served(0)
    await made.rebalance("timer")
    await made.wake_shared()
    assert made.admit() and made.served(0)
    assert [act for act in made.actors.log if act[0] == "leave"] == []


async def test_a_rebalance_is_due_after_a_while_and_earlier_where_a_cache_is_full(
    tmp_path, monkeypatch
):
    now = 100.0
    monkeypatch.setattr("rl.fleet.fleet.time.monotonic", lambda: now)
    made = fleet(tmp_path, [])
    await made.start()
    for controller, tokens in (("controller-0", 500), ("controller-1", 460)):
        made.pressure.hear(controller, Heartbeat(1, "", contexts={"engine-1": tokens}))
    now = 100.0 + PRESSURE_PAUSE * LIMITS.period_seconds
    assert made.due() is None, "no engine has told its room yet"
    made.pressure.hear("engine-1", Heartbeat(2, "", cache_tokens=1000))
    assert made.due() == "cache"
    await made.rebalance("cache")
    assert made.due() is None, "it was a moment ago"
    made.pressure.hear("controller-1", Heartbeat(1, ""))
    now += LIMITS.period_seconds / 2
    assert made.due() is None
    now += LIMITS.period_seconds / 2
    assert made.due() == "timer"
    made.serves["engine-1"] = None
    made.rules = replace(made.rules, live=1)
    assert made.due() is None, "one version has nothing to be shared out over"


async def test_an_engine_that_does_not_wake_up_ends_the_run_with_a_sentence(tmp_path):
    made = fleet(tmp_path, [], shared_engines=("engine-0", "engine-1"))
    await made.sleep_shared()
    made.actors.fail["engine-1"] = RayActorError()
    with pytest.raises(SyncError, match="engine-1 could not wake"):
        await made.wake_shared()


async def test_a_full_window_that_discards_says_what_is_given_up(tmp_path):
    places = [InProgress("t0", 0, "engine-0")]
    made = fleet(tmp_path, places, Rules(live=2, max_staleness=2, eviction="discard"))
    await publish(made, 1)
    await publish(made, 2)
    assert ("evict", (0,)) in made.actors.log
    assert made.window == Window((1, 2))


async def test_an_engine_that_changes_version_unforeseen_stages_it_before_it_is_left(tmp_path):
    """Both engines serve version 0 when version 1 comes; its engine's trajectories then end."""
    places = [InProgress(f"t{n}", 0, f"engine-{n % 2}", n) for n in range(4)]
    made = fleet(tmp_path, places)
    await made.start()
    await publish(made, 1)
    made.actors.log.clear()
    places.clear()
    made.groups.backlog = lambda window: Backlog(window, 1, {}, {}, {})
    await made.rebalance("timer")
    assert [name for name, _ in made.actors.log] == ["stage engine-0", "leave", "engine-0", "serve"]
    assert made.serves == {"engine-0": 1, "engine-1": 1}


async def test_a_version_that_cannot_be_staged_ends_the_run_and_every_engine_stays_as_it_is(
    tmp_path,
):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    made.actors.fail["stage engine-1"] = RuntimeError("layer model.norm got 0 of its 128 weights")
    with pytest.raises(
        SyncError, match=r"engine-1 could not stage version 1: layer model\.norm got 0"
    ):
        await publish(made, 1)
    assert made.serves == {"engine-0": 0, "engine-1": 0} and made.window == Window((0,))


async def test_adapters_are_on_every_engine_before_the_first_request(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True), adapters=True)
    await made.start()
    path = str(tmp_path / "version-0.safetensors")
    serving = {"engine-0": 0, "engine-1": 0}
    assert made.actors.log == [
        ("snapshot", 0),
        ("publish", path),
        ("engine-0", 0),
        ("engine-1", 0),
        ("serve", serving),
    ]
    await publish(made, 1)
    assert [file.name for file in made.actors.weights()] == []


async def test_an_engine_that_dies_as_it_loads_leaves_the_fleet_and_the_other_goes_on(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    made.actors.fail["stage engine-1"] = ActorDiedError()
    await publish(made, 1)
    assert made.serves == {"engine-0": 1} and made.counts["engines_lost"] == 1
    assert ("lose", ["engine-1"]) in made.actors.log
    made.actors.log.clear()
    await publish(made, 2)
    assert [name for name, _ in made.actors.log if "engine-1" in name] == []
    await made.lose(["engine-1"])
    assert made.counts["engines_lost"] == 1, "it had left before"


async def test_what_the_lost_engine_alone_served_goes_on_at_another(tmp_path):
    """Engine-0 serves version 0 and engine-1 version 1; the first one dies."""
    places = [InProgress(f"t{n}", n % 2, f"engine-{n % 2}", n) for n in range(4)]
    made = fleet(tmp_path, places)
    await made.start()
    await publish(made, 1)
    assert made.serves == {"engine-0": 0, "engine-1": 1}
    made.actors.log.clear()
    await made.lose(["engine-0"])
    assert made.serves == {"engine-1": 0}, "the oldest, which the window waits for"
    assert made.actors.log[0] == ("lose", ["engine-0"])
    assert made.actors.log[-1] == ("serve", {"engine-1": 0})


async def test_without_any_engine_the_run_ends_with_a_sentence(tmp_path):
    made = fleet(tmp_path, [])
    await made.start()
    await made.lose(["engine-0"])
    with pytest.raises(SyncError, match=r"^no engine is left: engine-1 died$"):
        await made.lose(["engine-1"])


async def test_a_lent_engine_that_dies_is_not_waited_for(tmp_path):
    made = fleet(tmp_path, [], shared_engines=("engine-1",))
    await made.start()
    made.actors.fail["engine-1"] = ActorDiedError()
    await made.sleep_shared()
    await made.wake_shared()
    assert made.serves == {"engine-0": 0} and made.shared_engines == ()


def another(made: Fleet, name: str = "engine-2") -> str:
    """An engine more, which the fleet has not heard of."""
    pool: Any = made.actors
    pool.add(name)
    return name


async def test_an_engine_that_joins_loads_the_newest_version_before_its_first_turn(tmp_path):
    places = [InProgress(f"t{n}", 1, "engine-0", n) for n in range(9)]
    made = fleet(tmp_path, places)
    await made.start()
    made.window = Window((0, 1))
    await made.sync.snapshot(1)
    await made.sync.publish(1)
    made.serves |= {"engine-0": 1, "engine-1": 1}
    made.actors.log.clear()
    await made.join(another(made))
    acts = [act for act in made.actors.log if act[0] in ("engine-2", "serve", "leave")]
    assert acts[:2] == [
        ("engine-2", 1),
        ("serve", {"engine-0": 1, "engine-1": 1, "engine-2": 1}),
    ]
    assert made.counts["engines_joined"] == 1
    left, moves = acts[2][1]
    assert left == [] and "engine-2" in moves.values(), "it takes its share of what is in progress"


@pytest.mark.parametrize(
    "rules", [Rules(live=1, max_staleness=1), Rules(live=1, max_staleness=1, in_place=True)]
)
async def test_where_one_version_lives_an_engine_joins_with_the_next_one(tmp_path, rules):
    made = fleet(tmp_path, [], rules)
    await made.start()
    await publish(made, 1)
    assert list(tmp_path.iterdir()) == []
    await made.join(another(made))
    await made.rebalance("timer")
    assert made.serves == {"engine-0": 1, "engine-1": 1, "engine-2": None}
    assert made.served(1), "the others do meanwhile"
    await publish(made, 2)
    assert made.serves == {"engine-0": 2, "engine-1": 2, "engine-2": 2}
    assert made.actors.log[-1] == ("serve", {"engine-0": 2, "engine-1": 2, "engine-2": 2})
    assert list(tmp_path.iterdir()) == [], "nobody will load it again"


async def test_an_engine_that_joins_after_the_last_version_gets_no_turns(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    await publish(made, 1)
    await made.join(another(made))
    await made.settle()
    assert made.serves == {"engine-0": 1, "engine-1": 1, "engine-2": None}


async def test_an_engine_that_dies_as_it_joins_leaves_again(tmp_path):
    made = fleet(tmp_path, [])
    await made.start()
    name = another(made)
    made.actors.fail[name] = ActorDiedError()
    assert not await made.join(name)
    assert made.serves == {"engine-0": 0, "engine-1": 0}
    assert (made.counts["engines_joined"], made.counts["engines_lost"]) == (1, 1)


async def test_an_engine_that_has_died_before_it_joins_takes_no_part(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    async with made.lock:
        joining = asyncio.create_task(made.join(another(made)))
        await asyncio.sleep(0.01)
        await made.lose(["engine-2"])
    assert not await joining
    assert "engine-2" not in made.serves


async def test_engines_without_weights_are_none_that_the_run_could_go_on_with(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    await publish(made, 1)
    assert await made.join(another(made))
    await made.lose(["engine-0"])
    with pytest.raises(SyncError, match=r"^no engine is left: engine-1 died$"):
        await made.lose(["engine-1"])


async def test_while_an_engine_without_weights_alone_is_awake_no_group_begins(tmp_path):
    rules = Rules(live=1, max_staleness=1, in_place=True)
    made = fleet(tmp_path, [], rules, shared_engines=("engine-1",))
    await made.start()
    await publish(made, 1)
    assert await made.join(another(made))
    await made.lose(["engine-0"])
    assert made.admit(), "the lent one is awake"
    await made.sleep_shared()
    assert made.admit() == {}
    await made.wake_shared()
    assert made.admit()


async def test_the_first_version_is_there_until_all_have_loaded_it_whoever_dies_meanwhile(tmp_path):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True), adapters=True)
    made.actors.turns = 20
    made.actors.fail["engine-0"] = ActorDiedError()
    starting = asyncio.create_task(made.start())
    while ("engine-1", 0) not in made.actors.log:
        await asyncio.sleep(0)
    await made.lose(["engine-0"])
    await starting
    assert made.serves == {"engine-1": 0} and made.counts["engines_lost"] == 1


async def test_an_engine_that_dies_when_it_has_loaded_leaves_too(tmp_path, monkeypatch):
    made = fleet(tmp_path, [], Rules(live=1, max_staleness=1, in_place=True))
    await made.start()
    load = made.sync.load

    async def load_and_lose(versions: dict[str, int]) -> dict[str, LoadTimes]:
        times = await load(versions)
        made.sync.lost.add("engine-1")  # noticed by a call beside this one
        return times

    monkeypatch.setattr(made.sync, "load", load_and_lose)
    await publish(made, 1)
    assert made.serves == {"engine-0": 1}
