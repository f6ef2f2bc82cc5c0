"""`aggregate`: recorded answers read back, tasks drawn from them, the original played with them."""

import json
from pathlib import Path

import pytest
from kitchen import Kitchen

from envs.aggregate import RECORDED, Aggregate, AggregateConfig
from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Deadlines, Task
from envs.message import ToolCall
from envs.recorded_answers import read_record
from envs.registry import make_env
from envs.session import EnvSession, demonstrate
from envs.settings import BadSettings
from envs.user import ScriptUser
from rl.config import load_config
from rl.config_error import ConfigError
from rl.preflight.settings import resolved

CALCULATOR = Calculator(CalculatorConfig())


def line(task: Task, text: str, right: bool, group: str = "3-0", **changed) -> str:
    turn = {"text": text, "calls": [], "thought": "secret"}
    record = {
        "id": "x", "group": group, "env": "label", "stop_reason": "completed", "turns": [turn],
        "task": {"env": task.env, "data": task.data, "noise": 0, "id": task.id},
        "rewards": {"solved": float(right), "style": 0.5}, "reward": right + 0.5,
    }  # fmt: skip
    return json.dumps({**record, **changed}) + "\n"


def drawn(count: int, split: str = "train") -> list[Task]:
    tasks = CALCULATOR.tasks(split, 0)
    return list({t.id: t for t in (next(tasks) for _ in range(3 * count))}.values())[:count]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with 6 answers to each of 3 training tasks: one is never right, and of 2 evaluated ones."""
    (tmp_path / "trajectories").mkdir()
    one, two, never = drawn(3)
    lines = [line(t, f"{n}", right=n < 2) for t in (one, two) for n in range(6)]
    lines += [line(never, f"{n}", right=False) for n in range(6)]
    held = [line(t, f"{n}", n < 2, "eval-after-1") for t in drawn(2, "heldout") for n in range(6)]
    (tmp_path / "trajectories" / "controller-0.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "trajectories" / "eval.jsonl").write_text("".join(held), encoding="utf-8")
    (tmp_path / "trajectories" / "learned.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    return tmp_path


def made(run: Path, **settings) -> Aggregate:
    values = {"of": "calculator", "record": str(run), "answers": 4, **settings}
    env = make_env("envs.aggregate:Aggregate", values)
    assert isinstance(env, Aggregate)
    return env


def made_of(name: str) -> Aggregate:
    env = make_env("envs.aggregate:Aggregate", {"of": name, "answers": 2})
    assert isinstance(env, Aggregate)
    return env


def first(env: Aggregate, split: str, count: int) -> list[Task]:
    tasks = env.tasks(split, 0)
    return [next(tasks) for _ in range(count)]


def test_only_final_texts_of_judged_episodes_are_answers(tmp_path):
    [task] = drawn(1)
    turn = {"text": "7", "calls": [{"name": "add", "arguments": {}}]}
    lines = [
        line(task, " 42 \n", right=True),
        line(task, "", right=False),
        line(task, "9", right=False, stop_reason="max_tokens"),
        line(task, "9", right=False, stop_reason="env_fault"),
        line(task, "", right=False, turns=[turn]),
        line(Task("other", {}), "1", right=True),
    ]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(lines) + '{"id": "half', encoding="utf-8")
    record = read_record(str(file), "calculator")
    assert record.judged == 4
    assert [(a.text, a.right) for a in record.tasks[0].answers] == [("42", True)]


def test_training_tasks_hold_right_and_wrong_answers_and_held_out_ones_stay_the_same(run):
    env = made(run)
    wanted = {t.id for t in drawn(2)}
    seen: set[str] = set()
    for task in first(env, "train", 40):
        data = dict(task.data)
        answers = data.pop(RECORDED)
        assert len(answers) == len(set(answers)) == 4
        assert {int(a) < 2 for a in answers} == {True, False}
        seen.add(Task("calculator", data).id)
    assert seen == wanted, "a task that nobody solved teaches nothing"
    assert len({json.dumps(t.data) for t in first(env, "train", 40)}) > 20
    held = first(env, "heldout", 8)
    assert len({t.id for t in held}) == 2 and not seen & {t.id for t in held}
    assert [t.id for t in first(env, "train", 9)] == [t.id for t in first(made(run), "train", 9)]


async def test_the_original_is_played_with_its_tools_and_judged_as_it_is(run):
    env = made(run)
    [task] = first(env, "train", 1)
    session = EnvSession(env, Deadlines())
    opening = await session.open(task)
    asked = opening.messages[-1].content
    assert all(f"] {answer}\n" in asked for answer in task.data[RECORDED]) and "secret" not in asked
    assert [t.name for t in opening.tools] == ["add", "subtract", "multiply"]
    called = await session.step("", (ToolCall("add", {"a": "1", "b": 2}), ToolCall("no", {})))
    assert [m.content for m in called.messages] == ["3", "error: no tool 'no'"]
    done = await session.step("wrong", ())
    assert done.done and await session.score() == {"solved": 0.0}
    await session.close()
    *_, rewards = await demonstrate(made(run), task)
    assert rewards == {"solved": 1.0}


async def test_a_task_that_nobody_answered_is_the_original(run):
    env = made(run)
    [task] = drawn(1)
    session = EnvSession(env, Deadlines())
    opening = await session.open(env.task(task.data, []))
    assert opening.messages == tuple(await Calculator(CalculatorConfig()).reset(task))


async def test_the_originals_user_is_who_the_session_says():
    values = {"of": "orders", "config": {"user": True}, "answers": 2}
    env = make_env("envs.aggregate:Aggregate", values)
    assert isinstance(env, Aggregate) and env.has_user and not made_of("calculator").has_user
    player = ScriptUser()
    session = EnvSession(env, Deadlines(), player)
    task = next(env.inner.tasks("train", 0))
    await session.open(env.task(task.data, ["one", "two"]))
    assert env.inner.user is player
    await session.close()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"of": "calculatr"}, "did you mean 'calculator'"),
        ({"of": "agent", "config": {"tasks": "."}}, "an agent plays 'agent'"),
        ({"of": "aggregate"}, "name the original"),
        ({"config": {"largst": 3}}, "largst: unknown key"),
        ({"template": "no place"}, "has to have {answers} once"),
        ({"answers": 1}, "never right and wrong"),
        ({"record": ""}, "name a run or an evaluation"),
        ({"record": "nowhere"}, "'nowhere' does not exist"),
        ({"of": "sensors"}, "no judged episode of 'sensors'"),
        (
            {"answers": 9},
            "no train task with right and wrong ones among 9 answers: there are 5 tasks .* 6 of one",
        ),
    ],
)
def test_what_cannot_be_aggregated_is_one_sentence(run, settings, sentence):
    with pytest.raises((BadSettings, ValueError), match=sentence):
        env = made(run, **settings)
        env.probe()
        next(env.tasks("train", 0))


def test_an_environment_that_ends_without_a_text_is_refused(tmp_path):
    turn = {"text": "", "calls": [{"name": "stir", "arguments": {}}]}
    file = tmp_path / "tools.jsonl"
    tools = [line(Task("kitchen", {"pot": n}), "", right=True, turns=[turn]) for n in range(3)]
    file.write_text("".join(tools), encoding="utf-8")
    env = Aggregate(AggregateConfig(of="kitchen:Kitchen", record=str(file)))
    assert Kitchen.name == "kitchen"
    with pytest.raises(ValueError, match="none ends with a text of the policy"):
        env.probe()


def test_a_run_without_a_record_is_refused(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        'name = "x"\n[model.init]\n[[env]]\nid = "envs.aggregate:Aggregate"\n'
        'config = { of = "calculator" }\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"config\.record has to name the answers"):
        resolved(load_config(config))


def test_a_table_names_its_files_from_its_own_folder(run, monkeypatch, tmp_path):
    worlds = run / "worlds.py"
    worlds.write_text("", encoding="utf-8")
    (run / "rows.jsonl").write_text("", encoding="utf-8")
    config = run / "run.toml"
    config.write_text(
        'name = "x"\n[model.init]\n[[env]]\nid = "aggregate"\n'
        'config = { of = "worlds.py:World", record = "trajectories", config = { path = "rows.jsonl" } }\n',
        encoding="utf-8",
    )
    monkeypatch.chdir("/")
    [table] = load_config(config).env
    assert table.config == {
        "of": f"{worlds}:World",
        "record": str(run / "trajectories"),
        "config": {"path": str(run / "rows.jsonl")},
    }
