"""Contracts of the built-in environments, and of finding environments by name."""

import asyncio
import itertools
import json
import pickle
import random
import sqlite3

import pytest
from fakes import ENVS, play

from envs.builtin.orders import Orders
from envs.builtin.sensors import Sensors
from envs.env import Env, Task
from envs.message import ToolCall
from envs.registry import UnknownEnv, env_names, find_env
from envs.session import Deadlines, EnvSession, demonstrate


@pytest.fixture(params=ENVS)
def id(request: pytest.FixtureRequest) -> str:
    return request.param


def make(id: str) -> Env:
    env_class = find_env(id)
    return env_class(env_class.config_type())


def train_tasks(id: str, count: int = 50, seed: int = 7) -> list[Task]:
    return list(itertools.islice(make(id).tasks("train", seed), count))


async def score(id: str, task: Task, moves: list) -> dict[str, float]:
    session = EnvSession(make(id), Deadlines())
    await play(session, task, moves)
    try:
        return await session.score()
    finally:
        await session.close()


async def test_the_expert_gets_the_full_score(id):
    for task in train_tasks(id):
        _, said, rewards = await demonstrate(make(id), task)
        assert rewards == {"solved": 1.0}, task
        assert any(m.tool_calls for m in said), "the task needs a tool"


async def test_answering_at_once_without_a_tool_does_not_solve_a_task(id):
    for task in train_tasks(id):
        assert await score(id, task, ["done"]) == {"solved": 0.0}, task


async def test_an_episode_without_an_answer_solves_nothing(id):
    for task in train_tasks(id, 10):
        _, said, _ = await demonstrate(make(id), task)
        calls = [call for m in said for call in m.tool_calls]
        assert await score(id, task, calls) == {"solved": 0.0}, task


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(id):
    first, again, other = train_tasks(id), train_tasks(id), train_tasks(id, seed=8)
    assert first == again
    assert first != other


def test_train_and_heldout_tasks_are_disjoint(id):
    ids = {
        split: {t.id for t in itertools.islice(make(id).tasks(split, seed), 1500)}
        for split, seed in (("train", 0), ("heldout", 1))
    }
    assert ids["train"].isdisjoint(ids["heldout"])
    assert len(ids["heldout"]) > 100


def test_about_a_tenth_of_all_tasks_is_held_out(id):
    env, rng = make(id), random.Random(0)
    made = [Task(env.name, env.sample(rng)) for _ in range(2000)]
    assert 0.07 < sum(task.split == "heldout" for task in made) / 2000 < 0.13


def test_tasks_pickle_and_survive_json_with_their_id(id):
    for task in train_tasks(id):
        assert pickle.loads(pickle.dumps(task)) == task
        assert Task(task.env, json.loads(json.dumps(task.data))).id == task.id
        assert task.env == make(id).name


def test_every_tool_tells_the_policy_its_name_purpose_and_arguments(id):
    opening = asyncio.run(EnvSession(make(id), Deadlines()).open(train_tasks(id, 1)[0]))
    assert opening.tools
    for tool in opening.tools:
        assert tool.description
        assert set(tool.parameters["required"]) == set(tool.parameters["properties"])


@pytest.mark.parametrize(
    "value", ["", "x", "-1", str(10**30), "1e400", "null", "\x00", "é漢🙂", '{"a": 1}'], ids=ascii
)
async def test_no_argument_of_the_policy_becomes_a_fault_of_the_environment(id, value):
    session = EnvSession(make(id), Deadlines())
    await session.open(train_tasks(id, 1)[0])
    for name, tool in session.tools.items():
        valid = "cancelled"  # so that the status of an order is no reason to refuse the number
        arguments = {
            key: valid if key == "status" else value for key in tool.schema.parameters["properties"]
        }
        result = await session.step("", (ToolCall(name, arguments),))
        assert result.messages[0].role == "tool"
    await session.close()


def test_the_built_in_environments_are_installed_entry_points():
    assert {*ENVS, "dataset"} <= set(env_names())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("calculater", "'calculater' does not exist: did you mean 'calculator'?"),
        ("zzz", "'zzz' does not exist: installed are calculator, "),
        ("envs.builtin.calculator:Missing", "'envs.builtin.calculator:Missing' cannot be imported"),
        ("no_such_module:Env", "'no_such_module:Env' cannot be imported"),
        (":Env", "':Env' cannot be imported"),
        ("envs.builtin.calculator:WORDS", "is not a subclass of envs.env.Env"),
    ],
)
def test_an_environment_that_cannot_be_found_is_one_sentence(name, sentence):
    with pytest.raises(UnknownEnv) as caught:
        find_env(name)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["1 / 0", "def broken(:"])
def test_a_plugin_that_fails_to_import_is_one_sentence(tmp_path, monkeypatch, source):
    name = f"plugin_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownEnv, match=f"'{name}:World' cannot be imported"):
        find_env(f"{name}:World")


def test_an_environment_is_found_as_module_and_name():
    assert find_env("envs.builtin.orders:Orders") is Orders


async def test_calculator_wants_the_tool_even_for_the_right_answer():
    task = Task("calculator", {"op": "add", "word": "plus", "a": 2, "b": 3})
    assert await score("calculator", task, ["5"]) == {"solved": 0.0}
    add = ToolCall("add", {"a": "2", "b": "3"})
    assert await score("calculator", task, [add, " 5\n"]) == {"solved": 1.0}
    assert await score("calculator", task, [add, "6"]) == {"solved": 0.0}


ORDER = Task("orders", {"verb": "cancel", "customer": "mira", "rows": {"mira": 731, "ben": 202}})
RIGHT = ToolCall("set_status", {"order": "731", "status": "cancelled"})


async def test_orders_is_a_real_sqlite_database_that_close_closes():
    env = Orders(Orders.config_type())
    session = EnvSession(env, Deadlines())
    await play(session, ORDER, [RIGHT])
    database = env.db
    assert isinstance(database, sqlite3.Connection)
    query = "select status from orders where id = 731"
    assert database.execute(query).fetchall() == [("cancelled",)]
    await session.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute(query)


@pytest.mark.parametrize(
    ("moves", "solved"),
    [
        ([RIGHT, "done"], 1.0),
        ([ToolCall("set_status", {"order": "202", "status": "held"}), RIGHT, "done"], 0.0),
        ([ToolCall("set_status", {"order": "731", "status": "held"}), "done"], 0.0),
        ([ToolCall("set_status", {"order": "731", "status": "held"}), RIGHT, "done"], 1.0),
        ([ToolCall("set_status", {"order": "999", "status": "held"}), RIGHT, "done"], 1.0),
    ],
    ids=["right row", "another row too", "wrong status", "mended", "refused call"],
)
async def test_orders_judges_the_final_rows_all_of_them(moves, solved):
    assert await score("orders", ORDER, moves) == {"solved": solved}


async def test_orders_refuses_unknown_customers_orders_and_states():
    session = EnvSession(Orders(Orders.config_type()), Deadlines())
    said = await play(
        session,
        ORDER,
        [
            ToolCall("find", {"customer": "mira"}),
            ToolCall("find", {"customer": "nobody"}),
            ToolCall("set_status", {"order": "1", "status": "held"}),
            ToolCall("set_status", {"order": "731", "status": "eaten"}),
        ],
    )
    assert said == [
        "731",
        "error: no order of 'nobody'",
        "error: no order 1",
        "error: no status 'eaten'",
    ]


async def test_a_wrong_sensor_does_not_use_up_failures_of_the_right_one():
    task = Task("sensors", {"sensor": "k7", "value": 318, "failures": 2})
    right, wrong = (ToolCall("read", {"sensor": name}) for name in ("k7", "a1"))
    session = EnvSession(Sensors(Sensors.config_type()), Deadlines())
    said = await play(session, task, [wrong, wrong, wrong, right, wrong, right, right])
    assert said == [*["error: no sensor 'a1'"] * 3, "error: busy", said[0], "error: busy", "318"]


def test_failures_of_sensors_are_part_of_the_task():
    counts = {task.data["failures"] for task in train_tasks("sensors", 200)}
    assert counts == {0, 1, 2, 3}
