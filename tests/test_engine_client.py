"""The engines as a controller sees them: pinned versions, leaving an engine, turns in pieces."""

import asyncio
import itertools
from pathlib import Path

import numpy as np
import pytest
from fakes import Remote
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rl.actors.engine import EngineActor
from rl.actors.engine_client import EngineClient, EngineMapMissing, joined, least_loaded
from rl.actors.engine_wires import EngineWires
from rl.actors.heartbeat import Heartbeat
from rl.actors.local_handle import local_handle
from rl.actors.rpc import Address, RpcServer
from rollout.engine import Completion, EngineFault, Request, VersionSpan


class Writer(EngineActor):
    """An engine that writes the numbers after its prompt's last, one per turn of the event loop.

    Where it has a folder, an interrupted request leaves its cache there, which the next engine takes.
    """

    def __init__(self, version: int, caches: Path | None = None) -> None:
        self.version = version
        self.caches = caches
        self.stopped: set[str] = set()
        self.prompts: list[tuple[int, ...]] = []
        self.deaf = 0
        self.handle = local_handle(self)
        self.aborted: list[str] = []
        self.hangs = False

    async def generate(self, request: Request) -> Completion:
        self.prompts.append(request.prompt_ids)
        ids: list[int] = []
        while len(ids) < request.max_tokens and request.id not in self.stopped:
            ids.append(request.prompt_ids[-1] + len(ids) + 1)
            await asyncio.sleep(0.001)
        reason = "abort" if request.id in self.stopped else "length"
        spans = (VersionSpan(self.version, 0, len(ids)),) if ids else ()
        cached = len(request.prompt_ids) - 1 if request.cache else 0
        cache = ""
        if self.caches and reason == "abort":
            cache = str(self.caches / request.id.replace("/", "-"))
            Path(cache).touch()
        routed = np.arange(request.num_routed, len(request.prompt_ids) + len(ids) - 1 if ids else 0)
        return Completion(
            tuple(ids),
            tuple(-float(i) for i in ids),
            spans,
            reason,
            cached_tokens=cached,
            cache=cache,
            routing=routed.astype(np.uint16)[:, None, None],
        )

    async def interrupt(self, ids: list[str]) -> None:
        if self.deaf:
            self.deaf -= 1
            return
        self.stopped.update(ids)

    async def abort(self, ids: list[str]) -> None:
        self.aborted += ids

    async def pulse(self) -> None:
        """It hangs while it is told to."""
        while self.hangs:
            await asyncio.sleep(0.001)


async def pool(
    caches: Path | None = None, **versions: int
) -> tuple[EngineClient, dict[str, Writer]]:
    writers = {name: Writer(version, caches) for name, version in versions.items()}
    made = EngineClient({name: w.handle for name, w in writers.items()}, 5.0)
    await made.serve(versions)
    return made, writers


def request(session: str, tokens: int = 3, turn: int = 0) -> Request:
    return Request(f"{session}/{turn}", session, (0,), tokens)


async def test_a_trajectory_goes_to_engines_of_its_version_only():
    engines, writers = await pool(a=1, b=2)
    for id, version in (("old", 1), ("new", 2)):
        engines.begin(id, version)
    turns = [engines.generate(request(id, turn=n)) for n in range(3) for id in ("old", "new")]
    for completion in await asyncio.gather(*turns):
        assert completion.token_ids == (1, 2, 3)
    assert [len(w.prompts) for w in writers.values()] == [3, 3]
    assert {(one.id, one.engine) for one in engines.in_progress()} == {("old", "a"), ("new", "b")}
    assert engines.contexts() == {one.engine: one.tokens for one in engines.in_progress()}


async def test_later_turns_go_where_the_cache_is():
    engines, _ = await pool(a=1, b=1)
    for session in ("x", "y"):
        engines.begin(session, 1)
    await asyncio.gather(*(engines.generate(request(s)) for s in ("x", "y")))
    home = {one.id: one.engine for one in engines.in_progress()}
    assert set(home.values()) == {"a", "b"}
    await asyncio.gather(*(engines.generate(request(s, turn=1)) for s in ("x", "y")))
    assert home == {one.id: one.engine for one in engines.in_progress()}
    assert engines.reprefilled_tokens == 0


async def test_an_engine_that_is_left_hands_over_its_requests_with_what_they_have_written():
    engines, writers = await pool(a=1, b=1)
    ids = [f"s{n}" for n in range(4)]
    for id in ids:
        engines.begin(id, 1)
    turns = [asyncio.create_task(engines.generate(request(id, 200))) for id in ids]
    await asyncio.sleep(0.02)
    at_a = {one.id for one in engines.in_progress() if one.engine == "a"}
    writers["a"].deaf = 1
    await engines.leave(["a"], {})
    assert not [name for name, _ in engines.running.values() if name == "a"]
    writers["a"].version = 9
    await engines.serve({"a": 9})
    for id, completion in zip(ids, await asyncio.gather(*turns), strict=True):
        assert completion.token_ids == tuple(range(1, 201)), "nothing is lost, nothing twice"
        assert completion.logprobs == tuple(-float(i) for i in range(1, 201))
        assert completion.versions == (VersionSpan(1, 0, 200),), id
    assert at_a and engines.reprefilled_tokens > 0
    assert all(one.engine == "b" for one in engines.in_progress())


async def test_the_routing_of_a_turn_in_pieces_is_that_of_each_token_once():
    engines, _ = await pool(a=1, b=1)
    engines.begin("x", 1)
    prompt = tuple(range(6, 0, -1))
    turn = asyncio.create_task(engines.generate(Request("x/0", "x", prompt, 200, num_routed=2)))
    for _ in range(2):
        await asyncio.sleep(0.02)
        home = engines.in_progress()[0].engine
        await engines.leave([home], {})
        await engines.serve({home: 1})
    completion = await turn
    assert len(completion.token_ids) == 200 and completion.routing is not None
    assert completion.routing.flatten().tolist() == list(range(2, len(prompt) + 199))


async def test_a_cache_goes_along_with_its_request_and_is_removed(tmp_path):
    engines, writers = await pool(tmp_path, a=1, b=1)
    engines.begin("x", 1)
    turn = asyncio.create_task(engines.generate(request("x", 200)))
    await asyncio.sleep(0.02)
    home = engines.in_progress()[0].engine
    await engines.leave([home], {})
    completion = await turn
    assert completion.token_ids == tuple(range(1, 201)) and completion.cache == ""
    assert engines.in_progress()[0].engine != home and len(writers[home].prompts) == 1
    assert engines.reprefilled_tokens == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_cache_is_removed_where_its_request_never_arrives(tmp_path):
    engines, _ = await pool(tmp_path, a=1)
    engines.begin("x", 1)
    turn = asyncio.create_task(engines.generate(request("x", 200)))
    await asyncio.sleep(0.02)
    await engines.leave(["a"], {})
    await asyncio.sleep(0.01)
    assert len(list(tmp_path.iterdir())) == 1
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    assert list(tmp_path.iterdir()) == []


async def test_without_a_cache_what_was_computed_is_counted_as_computed_again():
    engines, _ = await pool(a=1, b=1)
    engines.begin("x", 1)
    await engines.generate(request("x", 3))
    home = engines.in_progress()[0].engine
    await engines.leave([home], {})
    await engines.generate(Request("x/1", "x", (0, 1, 2, 3, 7, 8), 3))
    assert engines.reprefilled_tokens == 3, (
        "not the observation, and not the last token of the turn"
    )


async def test_a_trajectory_in_a_tool_moves_without_a_request():
    engines, writers = await pool(a=1, b=1)
    engines.begin("x", 1)
    await engines.generate(request("x"))
    (one,) = engines.in_progress()
    other = "b" if one.engine == "a" else "a"
    await engines.leave([one.engine], {"x": other})
    await engines.generate(request("x", turn=1))
    assert engines.in_progress()[0].engine == other
    assert len(writers[other].prompts) == 1


async def test_while_no_engine_serves_its_version_a_turn_waits():
    engines, _ = await pool(a=1)
    engines.begin("x", 2)
    turn = asyncio.create_task(engines.generate(request("x")))
    await asyncio.sleep(0.01)
    assert not turn.done()
    await engines.serve({"a": 2})
    assert (await turn).token_ids == (1, 2, 3)


async def test_an_abort_that_nobody_asked_for_stays_an_abort():
    engines, writers = await pool(a=1)
    engines.begin("x", 1)
    writers["a"].stopped.add("x/0")
    assert (await engines.generate(request("x"))).finish_reason == "abort"


async def test_a_slow_engine_is_a_fault_with_a_sentence():
    engines, _ = await pool(a=1)
    engines.request_seconds = 0.01
    engines.begin("x", None)
    with pytest.raises(EngineFault, match=r"engine a did not answer within 0.01 s"):
        await engines.generate(request("x", 1000))
    assert engines.loads == {"a": 0} and engines.running == {}


def test_pieces_are_joined_with_their_versions_in_place():
    spans = [(1, 2), (1, 3), (2, 1)]
    pieces = [
        Completion((7,) * n, (-0.5,) * n, (VersionSpan(v, 0, n),), "abort", f"e{v}")
        for v, n in spans
    ]
    whole = joined(pieces)
    assert whole.versions == (VersionSpan(1, 0, 5), VersionSpan(2, 5, 6))
    assert (len(whole.token_ids), len(whole.logprobs), whole.engine) == (6, 6, "e2")
    assert all(a.end == b.start for a, b in itertools.pairwise(whole.versions))


async def test_an_engine_need_not_write_on_for_a_turn_that_is_given_up():
    made, writers = await pool(a=0)
    made.begin("t", 0)
    turn = asyncio.create_task(made.generate(request("t", tokens=10_000)))
    while not made.running:
        await asyncio.sleep(0)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    made.request_seconds = 0.01
    with pytest.raises(EngineFault, match=r"did not answer within 0.01 s"):
        await made.generate(request("t", tokens=10_000, turn=1))
    await asyncio.sleep(0)
    assert writers["a"].aborted == ["t/0", "t/1"]
    assert made.running == {} and made.loads == {"a": 0}


async def test_a_request_at_an_engine_that_sleeps_has_all_its_time_when_it_wakes_up():
    made, writers = await pool(a=0)
    made.request_seconds = 0.1
    made.begin("t", 0)
    turn = asyncio.create_task(made.generate(request("t", tokens=10_000)))
    while not made.running:
        await asyncio.sleep(0)
    await made.serve({"a": None})
    await asyncio.sleep(0.35)
    assert not turn.done(), "it sleeps"
    await made.serve({"a": 0})
    await asyncio.sleep(0.01)
    writers["a"].stopped.add("t/0")
    assert (await turn).finish_reason == "abort"


async def test_a_request_that_an_engine_does_not_give_up_is_not_waited_for_longer():
    made, writers = await pool(a=0)
    made.request_seconds = 0.1
    writers["a"].deaf = 99
    made.begin("t", 0)
    turn = asyncio.create_task(made.generate(request("t", tokens=10_000)))
    while not made.running:
        await asyncio.sleep(0)
    await asyncio.wait_for(made.leave(["a"], {}), 5)
    with pytest.raises(EngineFault, match=r"did not answer within 0.1 s"):
        await turn


def failing(error: Exception):
    async def fail(*_: object) -> None:
        raise error

    return Remote(fail)


async def test_an_engine_that_died_gets_no_turn_any_more_even_if_it_is_named_again():
    engines, writers = await pool(a=1, b=1)
    writers["a"].handle.generate = failing(ActorDiedError())
    engines.begin("x", 1)
    engines.sessions["x"].engine = "a"
    with pytest.raises(EngineFault, match="engine a died"):
        await engines.generate(request("x"))
    await engines.serve({"a": 1, "b": 1})
    for turn in range(4):
        assert (await engines.generate(request("x", turn=turn + 1))).token_ids == (1, 2, 3)
    assert len(writers["b"].prompts) == 4


async def test_what_an_engine_that_is_lost_had_computed_is_counted_as_computed_again():
    engines, _ = await pool(a=1, b=1)
    engines.begin("x", 1)
    await engines.generate(request("x", 3))
    await engines.lose([engines.in_progress()[0].engine])
    await engines.generate(Request("x/1", "x", (0, 1, 2, 3, 7, 8), 3))
    assert engines.reprefilled_tokens == 3


async def test_an_engine_out_of_reach_gets_no_turns_until_it_answers(monkeypatch):
    monkeypatch.setattr("rl.actors.engine_client._REACH_SECONDS", 0.001)
    engines, writers = await pool(a=1, b=1)
    away, handle = failing(ActorUnavailableError("RPC error", b"0" * 16)), writers["a"].handle
    generate, pulse = handle.generate, handle.pulse
    handle.generate = handle.pulse = away
    engines.begin("x", 1)
    engines.sessions["x"].engine = "a"
    with pytest.raises(EngineFault, match="engine a could not be reached"):
        await engines.generate(request("x"))
    for turn in range(3):
        await engines.generate(request("x", turn=turn + 1))
    assert len(writers["b"].prompts) == 3
    [reaching] = engines.away.values()
    handle.generate, handle.pulse = generate, pulse
    await reaching
    engines.sessions["x"].engine = "a"
    await engines.generate(request("x", turn=9))
    assert len(writers["a"].prompts) == 1 and not engines.away


async def test_an_engine_that_did_not_answer_a_turn_gets_none_until_it_answers(monkeypatch):
    monkeypatch.setattr("rl.actors.engine_client._REACH_SECONDS", 0.001)
    engines, writers = await pool(a=1, b=1)
    hung = writers["a"]
    hung.hangs, engines.request_seconds = True, 0.05
    engines.begin("x", 1)
    engines.sessions["x"].engine = "a"
    with pytest.raises(EngineFault, match="engine a did not answer within"):
        await engines.generate(request("x", tokens=10_000))
    engines.request_seconds = 5.0
    for turn in range(3):
        await engines.generate(request("x", turn=turn + 1))
    assert len(writers["b"].prompts) == 3 and len(hung.prompts) == 1
    [reaching] = engines.away.values()
    hung.hangs = False
    await reaching
    assert not engines.away


async def test_a_cache_on_another_node_is_removed_there(tmp_path):
    engines, writers = await pool(tmp_path, a=1, b=1)
    dropped: list[str] = []

    async def drop(cache: str) -> None:
        dropped.append(cache)

    writers["a"].handle.drop = Remote(drop)
    engines._drop(str(tmp_path / "other-node" / "cache-1"), "a")
    await asyncio.sleep(0)
    assert dropped == [str(tmp_path / "other-node" / "cache-1")]


async def test_a_pool_that_was_told_nothing_says_so():
    made = EngineClient({}, 5.0)
    with pytest.raises(EngineMapMissing):
        made.check_engine_map()
    await made.serve({})
    made.check_engine_map()


async def test_an_engine_that_came_later_gets_turns_once_it_serves():
    made, _ = await pool(old=0)
    made.add({"young": Writer(1).handle})
    made.begin("t", 1)
    turn = asyncio.create_task(made.generate(request("t")))
    await asyncio.sleep(0.01)
    assert not turn.done()
    await made.serve({"young": 1})
    assert (await turn).token_ids == (1, 2, 3)
    assert made.loads["young"] == 0


loads = st.dictionaries(st.text("abc", min_size=1), st.integers(0, 20), min_size=1)


@given(loads, st.none() | st.text("abc", min_size=1))
def test_a_request_goes_to_its_engine_or_to_the_least_loaded(loads, preferred):
    name = least_loaded(loads, preferred)
    least = min(loads.values())
    assert loads[name] == least or (name == preferred and loads[name] <= least + 2)
    if preferred in loads and loads[preferred] <= least + 2:
        assert name == preferred


def test_placement_is_the_same_for_equal_loads():
    assert least_loaded({"b": 1, "a": 1}, None) == least_loaded({"a": 1, "b": 1}, None) == "a"


def test_an_engine_that_is_gone_is_not_preferred():
    assert least_loaded({"a": 5, "b": 3}, "gone") == "b"


class Wired(Writer):
    """An engine that turns reach by a connection. `died`: what Ray says of it."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.server = RpcServer(self._act, lambda owner: asyncio.sleep(0), lambda: None)
        self.node = "127.0.0.1"
        self.died = False

    async def address(self) -> Address:
        if self.died:
            raise ActorDiedError()
        return await self.server.address(self.node)

    async def heartbeat(self) -> Heartbeat:
        if self.died:
            raise ActorDiedError()
        return Heartbeat(0, "127.0.0.1")

    def _cut(self) -> None:
        """End all connections, as its end would."""
        for writer in self.server.clients.values():
            writer.transport.abort()


async def wired() -> tuple[EngineClient, Wired]:
    engine = Wired(3)
    made = EngineClient({"a": engine.handle}, 5.0, EngineWires("controller-0"))
    await made.serve({"a": 3})
    made.begin("s", 3)
    return made, engine


async def test_turns_travel_by_a_connection_and_what_is_wrong_with_one_comes_back():
    made, _ = await wired()
    answer = await made.generate(Request("s/0", "s", (5,), 4))
    assert (answer.token_ids, answer.versions) == ((6, 7, 8, 9), (VersionSpan(3, 0, 4),))
    with pytest.raises(TypeError, match="concatenate"):
        await made.generate(Request("s/1", "s", "no ids", 4))  # pyright: ignore[reportArgumentType]
    assert made.loads == {"a": 0} and not made.running


@pytest.mark.parametrize("died", [True, False])
async def test_a_turn_whose_connection_is_lost_fails_as_ray_says_of_its_engine(died: bool):
    made, engine = await wired()
    turn = asyncio.create_task(made.generate(Request("s/0", "s", (5,), 100_000)))
    while "s/0" not in made.running or not engine.prompts:
        await asyncio.sleep(0.001)
    engine.died = died
    engine._cut()
    with pytest.raises(EngineFault, match="died" if died else "could not be reached"):
        await turn
    if not died:  # it answers: there are turns again
        answer = await made.generate(Request("s/1", "s", (5,), 2))
        assert answer.token_ids == (6, 7)


async def test_the_turns_of_an_engine_that_is_lost_end_though_its_connection_says_nothing():
    """Of a node that is gone no packet comes."""
    made, engine = await wired()
    turn = asyncio.create_task(made.generate(Request("s/0", "s", (5,), 100_000)))
    while not engine.prompts:
        await asyncio.sleep(0.001)
    engine.died = True
    await made.lose(["a"])
    with pytest.raises(EngineFault, match="died"):
        await turn


async def test_histories_are_looked_for_only_where_the_weights_are_those_of_the_turn_before():
    engines, writers = await pool(a=1)
    engines.begin("x", None)
    await engines.generate(request("x"))
    assert engines.cache_use.opening_tokens == 1 and engines.cache_use.turns == 0
    await engines.generate(Request("x/1", "x", tuple(range(9)), 3))
    assert (engines.cache_use.turns, engines.cache_use.turns_cached) == (1, 0)
    assert engines.cache_use.history_tokens == 3
    writers["a"].version = 2
    await engines.generate(Request("x/2", "x", tuple(range(20)), 3))
    assert engines.cache_use.turns == 1, "the weights have changed"
    await engines.generate(Request("x/3", "x", tuple(range(40)), 3, cache="moved"))
    assert (engines.cache_use.turns, engines.cache_use.turns_cached) == (2, 1)


async def test_a_segment_that_begins_has_no_history_and_the_one_before_is_nobodys():
    engines, _ = await pool(a=1)
    engines.begin("x", None)
    await engines.generate(request("x"))
    await engines.generate(Request("x/1", "x", (7, 8), 3, begins=True))
    assert (engines.cache_use.turns, engines.cache_use.opening_tokens) == (0, 3)
    assert engines.reprefilled_tokens == 0 and engines.contexts() == {"a": 2}


async def test_a_first_turn_fails_where_ray_says_that_its_engine_has_died():
    """The engine is asked for its address then."""
    made, engine = await wired()
    engine.died = True
    with pytest.raises(EngineFault, match="died"):
        await made.generate(Request("s/0", "s", (5,), 2))
    assert made.gone == {"a"}
