"""Contracts of the built-in environments, and of finding environments by name."""

import asyncio
import itertools
import json
import pickle
import random
import sqlite3

import pytest
from fakes import ENVS, play
from pydantic import ValidationError

from envs.builtin.orders import Orders
from envs.builtin.sensors import Sensors
from envs.env import Env, Expert, Task
from envs.message import Message, ToolCall
from envs.registry import UnknownEnv, env_names, find_env
from envs.session import Deadlines, EnvSession, demonstrate
from envs.tool import tools_of
from rl.cold_start import Slips

BUILT_INS = {
    name: f"envs.builtin.{name}:{''.join(map(str.title, name.split('_')))}"
    for name in (
        *("adventure", "agenda", "calculator", "desk", "flaky_api", "library", "memory", "orders"),
        *("sensors", "shell", "sql", "units"),
    )
}
# Each environment at each of its difficulties, as `shell@2`.
LEVELS = [
    f"{name}@{level}"
    for name, path in BUILT_INS.items()
    for level in range(1, find_env(path).difficulties + 1)
]


@pytest.fixture(params=LEVELS)
def id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=BUILT_INS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def make(id: str) -> Env:
    """`shell@2`: at that difficulty; `shell`: as it is without settings."""
    name, _, level = id.partition("@")
    env_class = find_env(BUILT_INS[name])
    return env_class(env_class.config_type(**({"difficulty": int(level)} if level else {})))


def train_tasks(id: str, count: int = 50, seed: int = 7) -> list[Task]:
    return list(itertools.islice(make(id).tasks("train", seed), count))


async def score(id: str, task: Task, moves: list) -> dict[str, float]:
    session = EnvSession(make(id), Deadlines())
    await play(session, task, moves)
    try:
        return await session.score()
    finally:
        await session.close()


@pytest.mark.heavy
async def test_the_expert_gets_the_full_score(id):
    for task in train_tasks(id):
        _, said, rewards = await demonstrate(make(id), task)
        assert rewards == {"solved": 1.0}, task
        assert any(m.tool_calls for m in said), "the task needs a tool"


async def test_what_makes_a_task_hard_is_in_its_data_so_any_instance_can_play_it(id):
    name, _, level = id.partition("@")
    for task in train_tasks(id, 5):
        assert task.data.get("difficulty", 1) == int(level)
        first = await demonstrate(make(name), task)
        assert first[2] == {"solved": 1.0}
        assert await demonstrate(make(name), task) == first, "two resets give two worlds"


def test_a_graded_environment_has_at_least_three_difficulties_and_refuses_others(name):
    env_class = find_env(BUILT_INS[name])
    assert env_class.difficulties >= 3
    for level in (0, env_class.difficulties + 1):
        with pytest.raises(ValidationError, match="difficulty"):
            env_class.config_type.model_validate({"difficulty": level})


async def test_doing_nothing_to_the_end_does_not_solve_a_task(id):
    for task in train_tasks(id):
        session = EnvSession(make(id), Deadlines())
        await session.open(task)
        while not (await session.step("done", ())).done:
            pass
        assert await session.score() == {"solved": 0.0}, task
        await session.close()


@pytest.mark.heavy
async def test_the_expert_goes_on_after_a_wrong_call_and_ends(id):
    """As in the demonstrations of a cold start: `slip` puts another tool, or nothing, in a call's place."""
    for number, task in enumerate(train_tasks(id)):
        _, said, _ = await demonstrate(make(id), task, Slips(0.3, str(number)))
        assert sum(m.role == "assistant" for m in said) < 100


@pytest.mark.heavy
async def test_a_call_marked_read_only_can_be_made_again_at_any_time(id):
    class Hesitant(type(make(id))):
        def expert(self, task: Task) -> Expert:
            play = super().expert(task)
            message: Message | None = next(play)
            while message is not None:
                if any(tools_of(type(self))[c.name].options.read_only for c in message.tool_calls):
                    yield message
                results = yield message
                try:
                    message = play.send(results)
                except StopIteration:
                    message = None

    for task in train_tasks(id, 20):
        _, _, rewards = await demonstrate(Hesitant(make(id).config), task)
        assert rewards == {"solved": 1.0}, task


@pytest.mark.heavy
async def test_answering_at_once_without_a_tool_does_not_solve_a_task(id):
    for task in train_tasks(id):
        assert await score(id, task, ["done"]) == {"solved": 0.0}, task


@pytest.mark.heavy
async def test_an_episode_without_an_answer_solves_nothing(id):
    for task in train_tasks(id, 10):
        _, said, _ = await demonstrate(make(id), task)
        calls = [call for m in said for call in m.tool_calls]
        assert await score(id, task, calls) == {"solved": 0.0}, task


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others(id):
    first, again, other = train_tasks(id), train_tasks(id), train_tasks(id, seed=8)
    assert first == again
    assert first != other


@pytest.mark.heavy
def test_train_and_heldout_tasks_are_disjoint(id):
    ids = {
        split: {t.id for t in itertools.islice(make(id).tasks(split, seed), 200)}
        for split, seed in (("train", 0), ("heldout", 1))
    }
    assert ids["train"].isdisjoint(ids["heldout"])
    assert len(ids["heldout"]) > 100


@pytest.mark.heavy
def test_about_a_tenth_of_all_tasks_is_held_out(id):
    env, rng = make(id), random.Random(0)
    made = [Task(env.name, env.sample(rng)) for _ in range(1000)]
    assert 0.06 < sum(task.split == "heldout" for task in made) / 1000 < 0.14


def test_tasks_pickle_and_survive_json_with_their_id(id):
    for task in train_tasks(id):
        assert pickle.loads(pickle.dumps(task)) == task
        assert Task(task.env, json.loads(json.dumps(task.data))).id == task.id
        assert task.env == make(id).name


def test_every_tool_tells_the_policy_its_name_purpose_and_arguments(name):
    opening = asyncio.run(EnvSession(make(name), Deadlines()).open(train_tasks(name, 1)[0]))
    assert opening.tools
    for tool in opening.tools:
        assert tool.description
        assert set(tool.parameters.get("required", ())) == set(tool.parameters["properties"])


@pytest.mark.heavy
@pytest.mark.parametrize(
    "value", ["", "x", "-1", str(10**30), "1e400", "null", "\x00", "é漢🙂", '{"a": 1}'], ids=ascii
)
async def test_no_argument_of_the_policy_becomes_a_fault_of_the_environment(name, value):
    session = EnvSession(make(name), Deadlines())
    await session.open(train_tasks(name, 1)[0])
    for name, tool in session.tools.items():
        valid = "cancelled"  # so that the status of an order is no reason to refuse the number
        arguments = {
            key: valid if key == "status" else value for key in tool.schema.parameters["properties"]
        }
        result = await session.step("", (ToolCall(name, arguments),))
        assert result.messages[0].role == "tool"
    await session.step(value, ())
    await session.score()
    await session.close()


@pytest.mark.heavy
def test_an_episode_of_the_first_difficulty_is_short(first_episodes, short_renderer):
    """So short that a small policy can learn it: in tokens of a tokenizer trained on all of them."""
    longest = {
        name: max(
            len(short_renderer.demonstration(opening.messages, opening.tools, said)[0])
            for opening, said, _ in episodes
        )
        for name, episodes in first_episodes.items()
    }
    assert max(longest.values()) <= 200, longest


@pytest.fixture(scope="module")
def first_episodes():
    async def play_all(name: str):
        return [await demonstrate(make(name), task) for task in train_tasks(name, 100)]

    return {name: asyncio.run(play_all(name)) for name in BUILT_INS}


@pytest.fixture(scope="module")
def short_renderer(first_episodes, tmp_path_factory):
    from rollout.renderer import Renderer
    from trainer.small.init_model import VOCAB_SIZE
    from trainer.small.tokenizer import train_tokenizer

    texts = [
        text
        for episodes in first_episodes.values()
        for opening, said, _ in episodes
        for text in (
            *(f"{t.name}({json.dumps(t.parameters)}) {t.description}" for t in opening.tools),
            *(m.content for m in (*opening.messages, *said)),
            *(
                " ".join([c.name, *map(str, c.arguments.values())])
                for m in said
                for c in m.tool_calls
            ),
        )
    ]
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, VOCAB_SIZE["tiny"]).save_pretrained(folder)
    return Renderer(folder, "longcat")


def test_the_built_in_environments_are_installed_entry_points():
    assert {*ENVS, "dataset"} <= set(env_names())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("calculater", "'calculater' does not exist: did you mean 'calculator'?"),
        ("zzz", "'zzz' does not exist: installed are "),
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
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
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
