"""Noise around environments: it happens, it is bounded, experts who persist solve everything through it."""

import asyncio
import inspect
import itertools
import json
import pickle
import random
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import scored, trajectory
from hypothesis import given
from hypothesis import strategies as st

import envs.session
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import Message, ToolCall
from envs.noise import CLARIFY, FAILURES, LEVELS, PARTIAL, Noise, NoiseLevel, persistent
from envs.registry import find_env
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, demonstrate
from envs.tool import Tool, ToolError, tool, tools_of

ROOT = Path(__file__).parent.parent
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "entry-points"
]
# Those that come with an expert; `dataset` has none, and no tool either.
BUILT_IN = [
    name
    for name, where in POINTS["dorado.envs"].items()
    if find_env(where).expert is not Env.expert and ".builtin." in where
]
# Tasks per level; each of `python_code`'s episodes starts several interpreters.
NUM_TASKS = dict.fromkeys(BUILT_IN, 30) | {"python_code": 10}
CALL = ToolCall("look", {"at": "x"})
# Without waiting: that latency comes is seen in the events.
AT_ONCE = {number: replace(level, slow_seconds=0.0) for number, level in LEVELS.items()}


class Desk(Env):
    """A world whose tools count their calls: `look` only reads, `put` writes."""

    name = "desk_of_tests"

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return {"n": rng.randint(0, 10**6)}

    async def reset(self, task: Task) -> list[Message]:
        self.looked: list[str] = []
        self.written: list[str] = []
        self.value = "731"
        self.errors = task.data.get("errors", 0)
        return [Message("system", "be kind"), Message("user", "look at x then write it down")]

    @tool(read_only=True)
    async def look(self, at: str) -> str:
        """look at something"""
        self.looked.append(at)
        if len(self.looked) <= self.errors:
            raise ToolError("503, try again")
        return self.value

    @tool
    async def put(self, what: str) -> str:
        """write something down"""
        self.written.append(what)
        return f"{what} is number {len(self.written)}"

    async def score(self) -> dict[str, float]:
        return {"solved": float(self.written == [self.value])}

    def expert(self, task: Task) -> Expert:
        seen = (yield call("look", at="x"))[0]
        while seen.startswith("error:"):
            assert seen == "error: 503, try again"
            seen = (yield call("look", at="x"))[0]
        yield call("put", what=seen)
        yield say("done")


def desk_task(noise: int = 3, **data: Any) -> Task:
    return Task("desk_of_tests", data, noise)


def desk_session() -> EnvSession:
    return EnvSession(Desk(EnvConfig()), Deadlines())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.noise.LEVELS", AT_ONCE)


def settings(id: str) -> list[Env]:
    """One instance of a built-in for each of its difficulties."""
    env_class: Any = find_env(POINTS["dorado.envs"][id])
    count = getattr(env_class, "difficulties", 0)
    tables = [{"difficulty": n} for n in range(1, count + 1)] if count else [{}]
    return [env_class(env_class.config_type(**table)) for table in tables]


def tasks_of(id: str, count: int) -> list[tuple[Env, Task]]:
    """Seeded tasks over all difficulties, each with a fresh instance to play it."""
    found: list[tuple[Env, Task]] = []
    streams = [(env, env.tasks("train", 11)) for env in settings(id)]
    for env, stream in itertools.islice(itertools.cycle(streams), count):
        found.append((type(env)(env.config), next(stream)))
    return found


async def skip_where_it_cannot_run(id: str) -> None:
    """A machine may lack what an environment needs, such as a sandbox."""
    env, task = tasks_of(id, 1)[0]
    try:
        await env.reset(task)
    except HostFault as error:
        pytest.skip(str(error))
    finally:
        await env.close()


@pytest.mark.heavy
@pytest.mark.parametrize("noise", LEVELS)
@pytest.mark.parametrize("id", BUILT_IN)
async def test_the_expert_with_retries_scores_full_through_every_level(id, noise, at_once):
    await skip_where_it_cannot_run(id)
    for env, task in tasks_of(id, NUM_TASKS[id]):
        _, said, rewards = await demonstrate(env, replace(task, noise=noise))
        assert rewards == {"solved": 1.0}, (task, said)


async def test_an_expert_that_does_not_persist_fails_in_noise(at_once):
    solved = 0.0
    for seed in range(40):
        task = desk_task(n=seed)
        session = desk_session()
        await session.open(task)
        expert = session.env.expert(task)
        message = next(expert)
        try:
            while message.tool_calls:
                result = await session.step(message.content, message.tool_calls)
                message = expert.send([m.content for m in result.messages])
        except AssertionError:  # of an error that is not the environment's own
            continue
        solved += (await session.score())["solved"]
    assert solved < 30


@pytest.mark.heavy
@pytest.mark.parametrize("id", BUILT_IN)
async def test_without_noise_not_one_byte_changes(id, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a task without noise has nothing to do with it")

    await skip_where_it_cannot_run(id)
    for env, task in tasks_of(id, 5):
        bare = type(env)(env.config)
        said_by_itself = tuple(await bare.reset(task))
        await bare.close()
        with monkeypatch.context() as patch:
            patch.setattr(envs.session, "Noise", refuse)
            patch.setattr(envs.session, "persistent", refuse)
            opening, said, _ = await demonstrate(env, task)
        assert opening.messages == said_by_itself
        assert opening.tools == tuple(t.schema for t in tools_of(type(env)).values())
        # Played by hand: the expert's own messages and the bare answers of the tools.
        bare = type(env)(env.config)
        await bare.reset(task)
        heard = [m for m in said if m.role == "tool"]
        calls = [c for m in said for c in m.tool_calls]
        for one, message in zip(calls, heard, strict=True):
            known = tools_of(type(env))[one.name]
            try:
                answer = await _bare(known, bare, one)
            except ToolError as error:
                answer = f"error: {error}"
            assert message == Message("tool", answer, name=one.name)
        await bare.close()


async def _bare(known: Tool, env: Env, one: ToolCall) -> str:
    answer = known.method(env, **known.parse(one.arguments))
    return str(await answer if inspect.isawaitable(answer) else answer)


@pytest.mark.parametrize("noise", LEVELS)
async def test_trajectories_of_a_group_meet_the_same_noise_and_other_tasks_other_noise(
    noise, at_once
):
    async def once(task: Task) -> Any:
        session = desk_session()
        opening = await session.open(task)
        moves = [CALL, ToolCall("put", {"what": "y"})] * 30
        steps = [await session.step("", (move,)) for move in moves]
        return opening, steps, session.noise_events

    first, again, other = [await once(desk_task(noise, n=n)) for n in (1, 1, 2)]
    assert first == again
    assert first[2] != other[2]


def tool_noise(level: int | NoiseLevel, seed: int = 0) -> tuple[Noise, list[str]]:
    events: list[str] = []
    number = level if isinstance(level, int) else 3
    noise = Noise(desk_task(number, seed=seed), tools_of(Desk), events, 0.0)
    noise.level = AT_ONCE[level] if isinstance(level, int) else level
    return noise, events


@pytest.mark.heavy
@pytest.mark.parametrize("number", LEVELS)
async def test_noise_on_tools_comes_at_the_stated_rates_less_what_the_bounds_forbid(number):
    noise, events = tool_noise(number)
    level, calls = noise.level, 20_000
    for _ in range(calls):
        await noise.call(tools_of(Desk)["look"], {"at": "x"}, answer_with("731"))
    found = Counter(event.partition(": ")[2] for event in events)
    assert abs(found["latency"] / calls - level.slow) < 0.015

    def runs(share: float, most: int) -> float:
        """Mean length of a run of at most so many, each with this probability after the one before."""
        return sum(share**n for n in range(1, most + 1))

    failing = runs(level.failure, level.failures_in_row)
    assert abs(found["failure"] / calls - failing / (1 + failing)) < 0.015
    executed = calls - found["failure"]
    spoiling = level.partial + level.inconsistent
    # After a run of spoiled answers two are right; else one answer at a time is free to be spoiled.
    spoiled = runs(spoiling, level.spoiled_in_row)
    expected = spoiled / (spoiled + 2 * spoiling + (1 - spoiling))
    if spoiling:
        share = (found["partial"] + found["inconsistent"]) / executed
        assert abs(share - expected) < 0.015
        assert abs(found["partial"] / executed - share * level.partial / spoiling) < 0.015
    kinds = {"latency", "failure"} | ({"partial"} if level.partial else set())
    assert set(found) == kinds | ({"inconsistent"} if level.inconsistent else set())


@pytest.mark.heavy
@pytest.mark.parametrize("number", LEVELS)
async def test_noise_on_requests_comes_at_the_stated_rates(number):
    found: Counter[str] = Counter()
    count = 3000
    for n in range(count):
        noise, events = tool_noise(number, n)
        system, user = noise.opening(
            [Message("system", "be kind"), Message("user", 'read the sensors of "k7" kindly')]
        )
        assert system == Message("system", "be kind"), "only what the user says is changed"
        found.update(event.removeprefix("opening: ") for event in events)
        assert ('"k7"' in user.content) != ("opening: a clause withheld" in events)
    level = LEVELS[number]
    for event, share in (
        ("paraphrase", level.paraphrase),
        ("redundant detail", level.redundant),
        ("a clause withheld", level.withheld),
    ):
        assert abs(found[event] / count - share) < 0.03, event
    assert found["typos"] / count > level.typos


@st.composite
def levels(draw: st.DrawFn) -> NoiseLevel:
    shares = st.floats(0, 1)
    partial = draw(shares)
    return NoiseLevel(
        paraphrase=1.0,
        typos=1.0,
        failure=draw(shares),
        failures_in_row=draw(st.integers(0, 4)),
        slow=0.0,
        slow_seconds=0.0,
        partial=partial,
        inconsistent=draw(st.floats(0, 1 - partial)),
        spoiled_in_row=draw(st.integers(0, 3)),
    )


VALUES = st.one_of(
    st.sampled_from(["", "0", "ok", "open shut", "731", "10\n20", "a b c", "error: own", "-1.5"]),
    st.text(max_size=12),
)
# What is called, and the state of the world while it is.
PLAYS = st.lists(
    st.tuples(st.sampled_from(["look x", "look y", "put"]), VALUES), min_size=1, max_size=60
)


def answer_with(value: str):
    async def execute() -> str:
        return value

    return execute


@pytest.mark.heavy
@given(levels(), PLAYS, st.integers(0, 1000))
async def test_bounds_on_failures_and_spoiled_answers_hold_whatever_is_called(level, plays, seed):
    noise, _ = tool_noise(level, seed)
    failed: Counter[str] = Counter()
    spoiled: Counter[str] = Counter()
    rights: dict[str, int] = {}
    last: dict[str, str] = {}
    executed: list[str] = []

    async def execute() -> str:
        executed.append(value)
        return value

    for what, value in plays:
        name, _, at = what.partition(" ")
        executed.clear()
        result = await noise.call(tools_of(Desk)[name], {"at": at}, execute)
        if not executed:
            assert result in FAILURES
            failed[name] += 1
            assert failed[name] <= level.failures_in_row
            continue
        failed[name] = 0
        assert executed == [value], "a call is executed once"
        if name == "put" or value.startswith("error:"):
            assert result == value, "what changes something, and errors, are told as they are"
            continue
        if result == value:
            spoiled[what], rights[what] = 0, rights.get(what, 2) + 1
        else:
            assert spoiled[what] or rights.get(what, 2) >= 2, "after spoiled answers two are right"
            spoiled[what], rights[what] = spoiled[what] + 1, 0
            assert spoiled[what] <= level.spoiled_in_row
            if result.endswith(PARTIAL):
                assert value.startswith(result.removesuffix(PARTIAL))
                continue
            assert last.get(what) != result, "a wrong answer never equals the one before it"
        last[what] = result


@given(levels(), st.lists(VALUES, min_size=1, max_size=8), st.integers(0, 1000))
async def test_an_expert_that_persists_hears_the_truth_of_a_world_that_changes(level, values, seed):
    noise, _ = tool_noise(level, seed)
    written: list[str] = []

    def expert() -> Expert:
        for value in values:
            assert (yield call("put", at=value)) == [value]
            assert (yield call("look", at="x")) == [value]
            both = Message(
                "assistant", "both", (ToolCall("look", {"at": "x"}), ToolCall("put", {"at": value}))
            )
            assert (yield both) == [value, value]
        yield say("done")

    player = persistent(expert(), level, tools_of(Desk))
    message = next(player)
    calls = 0
    while message.tool_calls:
        (one,) = message.tool_calls
        calls += 1

        async def execute(one: ToolCall = one) -> str:
            if one.name == "put":
                written.append(one.arguments["at"])
            return written[-1]

        message = player.send(
            [await noise.call(tools_of(Desk)[one.name], dict(one.arguments), execute)]
        )
    assert written == [v for value in values for v in (value, value)], "nothing is done twice"
    assert calls <= level.most_calls * 4 * len(values)


@pytest.mark.parametrize("errors", [1, 5])
async def test_errors_of_the_environment_reach_the_expert_unchanged(errors, at_once):
    for seed in range(20):
        env = Desk(EnvConfig())
        _, said, rewards = await demonstrate(env, desk_task(errors=errors, seed=seed))
        assert rewards == {"solved": 1.0}, said
        assert [m.content for m in said].count("error: 503, try again") == errors
        assert len(env.written) == 1


async def test_an_error_of_the_environment_that_sounds_like_noise_reaches_the_expert_in_the_end():
    def expert() -> Expert:
        assert (yield call("put", what="x")) == [FAILURES[0]]
        yield say("done")

    player = persistent(expert(), LEVELS[3], tools_of(Desk))
    message, calls = next(player), 0
    while message.tool_calls:
        message, calls = player.send([FAILURES[0]]), calls + 1
    assert calls == LEVELS[3].failures_in_row + 1


async def test_an_error_that_a_tool_returns_as_text_is_told_as_it_is():
    noise, _ = tool_noise(3)
    answers = [
        await noise.call(tools_of(Desk)["look"], {"at": "x"}, answer_with("error: no row 7"))
        for _ in range(300)
    ]
    assert set(answers) == {"error: no row 7", *FAILURES}


async def test_a_wrong_answer_may_be_one_that_was_right_before():
    level = replace(AT_ONCE[3], failure=0, partial=0, inconsistent=0.5, spoiled_in_row=3)
    noise, _ = tool_noise(level)
    said = []
    for state in ("open", "shut", "open", "shut", "open"):
        for _ in range(30):
            said.append(
                (state, await noise.call(tools_of(Desk)["look"], {"at": "x"}, answer_with(state)))
            )
    assert set(said[:30]) == {("open", "open")}, "a single word that was always right stays"
    assert {("open", "shut"), ("shut", "open")} <= set(said[60:])
    assert {answer for _, answer in said} == {"open", "shut"}


async def test_a_failure_of_noise_is_no_refused_call_and_a_tool_error_is_one(at_once):
    session = desk_session()
    await session.open(desk_task(errors=1))
    results = [await session.step("", (CALL,)) for _ in range(200)]
    said = [(r.messages[0].content, r.bad_calls) for r in results]
    assert sum(bad for _, bad in said) == 1
    assert ("error: 503, try again", 1) in said
    assert {content for content, _ in said if content in FAILURES} == set(FAILURES)
    assert session.noise_events.count("look 1: failure") <= 1


async def test_bad_arguments_and_unknown_tools_are_refused_before_noise(at_once):
    session = desk_session()
    await session.open(desk_task())
    for bad in (ToolCall("look", {}), ToolCall("nothing", {}), ToolCall("clarify", {"x": 1})):
        for _ in range(20):
            result = await session.step("", (bad,))
            assert result.bad_calls == 1, result
    assert [event for event in session.noise_events if "opening" not in event] == []


async def test_faults_of_the_environment_stay_its_faults(at_once):
    class Broken(Desk):
        @tool(read_only=True)
        async def look(self, at: str) -> str:
            """look at something"""
            raise RuntimeError("the world is broken")

    session = EnvSession(Broken(EnvConfig()), Deadlines())
    await session.open(desk_task())
    with pytest.raises(EnvFault, match="tool 'look': RuntimeError: the world is broken"):
        for _ in range(5):
            await session.step("", (CALL,))


@pytest.mark.parametrize("noise", [0, *LEVELS])
async def test_the_request_in_full_can_be_had_where_clauses_are_withheld_and_nowhere_else(noise):
    session = desk_session()
    opening = await session.open(desk_task(noise))
    offered = [schema.name for schema in opening.tools]
    assert offered == ["look", "put", *(["clarify"] if noise == 3 else [])]
    result = await session.step("", (ToolCall("clarify", {}),))
    full = "look at x then write it down" if noise == 3 else "error: no tool 'clarify'"
    assert result.messages[0].content == full


async def test_an_environment_that_clarifies_itself_keeps_its_tool_and_its_request():
    class Asking(Desk):
        @tool
        async def clarify(self) -> str:
            """ask"""
            return "its own"

    for seed in range(20):
        session = EnvSession(Asking(EnvConfig()), Deadlines())
        opening = await session.open(desk_task(seed=seed))
        assert [schema.name for schema in opening.tools] == ["look", "put", "clarify"]
        assert " x " in opening.messages[1].content
        assert session.tools["clarify"] is not CLARIFY


async def test_latency_is_waited_for_and_is_far_below_the_deadline(monkeypatch):
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for tool_seconds, distinct in ((30.0, 10), (0.01, 1)):
        session = EnvSession(Desk(EnvConfig()), Deadlines(tool_seconds=tool_seconds))
        await session.open(desk_task())
        waited.clear()
        for _ in range(100):
            await session.step("", (CALL,))
        assert 10 < len(waited) == sum(e.endswith("latency") for e in session.noise_events)
        most = min(LEVELS[3].slow_seconds, 0.1 * tool_seconds)
        assert 0 < max(waited) <= most and len(set(waited)) >= distinct


def test_levels_grow_in_kinds_and_in_strength():
    for mild, strong in itertools.pairwise(LEVELS.values()):
        for name, value in vars(mild).items():
            assert value <= vars(strong)[name], name
        kinds = [sum(bool(v) for v in vars(level).values()) for level in (mild, strong)]
        assert kinds[0] < kinds[1]


def test_a_task_is_the_same_task_however_noisy():
    clean, noisy = Task("orders", {"n": 1}), Task("orders", {"n": 1}, noise=2)
    assert (clean.id, clean.split) == (noisy.id, noisy.split)
    assert clean.noise == 0 and clean != noisy
    assert replace(noisy, noise=0) == clean
    assert pickle.loads(pickle.dumps(noisy)) == noisy


def test_the_record_of_a_trajectory_holds_the_noise():
    one = replace(scored(), trajectory=replace(trajectory(), task=Task("fake", {}, noise=2)))
    record = json.loads(one.as_json())["task"]
    assert record.pop("id") == Task("fake", {}).id
    assert Task(**record) == Task("fake", {}, noise=2)


@pytest.mark.parametrize("noise", [-1, 4, 0.5, "mild", None])
def test_noise_out_of_range_is_one_sentence(noise):
    with pytest.raises(ValueError, match=r"'orders' has noise .* from 0 \(none\) to 3 \(severe\)"):
        Task("orders", {}, noise=noise)
