"""`dorado env replay`: the same plugin says the same, another one is caught at its first other word."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import write_run
from hypothesis import given
from hypothesis import strategies as st
from kitchen import Kitchen
from typer.testing import CliRunner

from envs.builtin.calculator import Calculator
from envs.env import EnvConfig, Task
from envs.message import Message, ToolCall
from envs.session import Deadlines, EnvSession
from rl.cli import app
from rl.env_table import EnvTable
from rl.env_tools.replay import find_record, replay
from rl.env_tools.soak.expert_policy import ExpertPolicy
from rl.env_tools.soak.run import EPISODE
from rl.plugin_check import check_plugins
from rollout.episode import Episode
from rollout.trajectory import Phase, ScoredTrajectory, Trajectory
from rollout.trajectory_file import NoRecord, read_trajectory

TABLE = EnvTable(id="kitchen:Kitchen", name="kitchen")


@pytest.fixture
async def record() -> ScoredTrajectory:
    env = Kitchen(EnvConfig())
    task = next(env.tasks("train", 0))
    policy = ExpertPolicy(env.expert(task), random.Random(0), 0.0)
    trajectory = await Episode(
        id="e0",
        group="e0",
        env="kitchen",
        task=task,
        session=EnvSession(env, Deadlines()),
        generate=policy.generate,
        renderer=policy,
        config=EPISODE,
    ).run()
    return ScoredTrajectory(trajectory, trajectory.env_rewards, 1.0)


@pytest.fixture
def folder(record: ScoredTrajectory, tmp_path: Path) -> Path:
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "eval.jsonl").write_text(record.as_json() + "\n", encoding="utf-8")
    (tmp_path / "config.toml").write_text(
        '[[env]]\nid = "kitchen:Kitchen"\nname = "kitchen"\nforgotten = 1\n',
        encoding="utf-8",
    )
    return tmp_path


async def test_the_same_plugin_says_the_same(record):
    found = await replay(record, TABLE)
    assert (found.parting, found.turns) == (None, 2)
    assert found.then == found.now == {"solved": 1.0, "reward": 1.0}


async def test_another_answer_is_shown_as_a_difference_and_nothing_after_it_is_played(
    record, monkeypatch
):
    monkeypatch.setattr(Kitchen, "said", "stirred\ntwice")
    found = await replay(record, TABLE)
    assert found.parting is not None
    assert (found.parting.turn, found.turns) == (1, 1)
    assert found.parting.diff[-3:] == (" tool (stir): stirred", "-  once", "+  twice")


async def test_another_reward_is_shown_beside_the_one_then(record, monkeypatch):
    monkeypatch.setattr(Kitchen, "reward", 0.5)
    found = await replay(record, TABLE)
    assert found.parting is not None and found.parting.turn is None
    assert (found.then["solved"], found.now["solved"]) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("opening", "what"),
    [("stir well", "the opening is another"), ("fault", "no stove"), ("away", "no gas")],
)
async def test_an_opening_that_is_another_or_fails_parts_at_once(
    record, monkeypatch, opening, what
):
    monkeypatch.setattr(Kitchen, "opening", opening)
    found = await replay(record, TABLE)
    assert found.parting is not None and what in found.parting.what
    assert found.parting.turn == 0


async def test_a_turn_the_environment_never_heard_of_is_not_asked_again(record):
    turns = record.trajectory.turns
    unread = replace(
        turns[0],
        text="<tool_call>{",
        calls=(),
        malformed=True,
        observations=(Message("tool", "error: a tool call has to be one JSON object"),),
    )
    garbled = replace(record, trajectory=replace(record.trajectory, turns=(unread, turns[1])))
    assert (await replay(garbled, TABLE)).parting is None


async def test_weights_and_judges_of_the_config_make_the_reward_of_now(record):
    weighed = TABLE.model_copy(update={"rewards": {"solved": 2.0}})
    found = await replay(record, weighed)
    assert (found.now["solved"], found.now["reward"]) == (1.0, 2.0)
    assert found.parting is not None


@pytest.mark.heavy
def test_a_judge_that_asks_a_model_stands_as_recorded_or_is_asked_again(record, folder, serve):
    server = serve(lambda body: (200, {"data": [{"probs": [0.25]}]}))
    config = f"""
[[models]]
name = "style"
use = "reward"
url = "{server.url}"
[[env]]
id = "kitchen:Kitchen"
name = "kitchen"
judge = [{{ id = "reward_model", name = "liked", model = "style" }}, {{ id = "ranking", model = "style" }}]
"""
    rewards = {**record.rewards, "liked": 0.5, "ranking": 0.75}
    judged = ScoredTrajectory(record.trajectory, rewards, 2.25)
    (folder / "config.toml").write_text(config, encoding="utf-8")
    (folder / "trajectories/eval.jsonl").write_text(judged.as_json() + "\n", encoding="utf-8")
    kept = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0"])
    assert kept.exit_code == 0 and not server.asked, kept.output
    assert "as in the record: liked, ranking (--judges asks them)" in kept.output
    config = config.replace(', { id = "ranking", model = "style" }', "")
    (folder / "config.toml").write_text(config, encoding="utf-8")
    again = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0", "--judges"])
    assert again.exit_code == 1 and len(server.asked) == 1, again.output
    assert "liked: then 0.5, now 0.25" in again.output


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["e0", "trajectories/eval.jsonl:e0"])
def test_the_command_ends_with_0_where_they_are_the_same_and_1_where_they_part(
    folder, name, monkeypatch
):
    same = CliRunner().invoke(app, ["env", "replay", f"{folder}/{name}"])
    assert (same.exit_code, "the same in all 2 turns" in same.stdout) == (0, True)
    monkeypatch.setattr(Kitchen, "said", "burnt")
    other = CliRunner().invoke(app, ["env", "replay", f"{folder}/{name}"])
    assert (other.exit_code, "+tool (stir): burnt" in other.stdout) == (1, True)


def test_a_replay_stops_after_a_turn_and_shows_the_conversation(folder):
    shown = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0", "--turn", "1"])
    assert shown.exit_code == 0
    assert "assistant: now\n  stir(times=2)\ntool (stir): stirred\n  once\n" in shown.stdout
    assert "tools: stir(times)" in shown.stdout
    assert "served" not in shown.stdout


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("e7", "has no trajectory 'e7'"),
        ("nowhere/e0", "there is no folder"),
        ("nothing.jsonl:e0", "there is no such file"),
        ("e0 --turn 3", "has 2 turns, so 1 to 2"),
    ],
)
def test_a_record_that_cannot_be_played_is_refused_with_a_sentence(folder, name, sentence):
    done = CliRunner().invoke(app, ["env", "replay", *f"{folder}/{name}".split()])
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True)


def test_an_environment_that_the_config_does_not_have_is_refused(folder):
    (folder / "config.toml").write_text('[[env]]\nid = "calculator"\n', encoding="utf-8")
    done = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0"])
    assert (done.exit_code, "no environment 'kitchen'; there are calculator" in done.stderr) == (
        2,
        True,
    )


def test_a_runs_trajectory_is_found_by_the_runs_index(tmp_path):
    run = write_run(tmp_path / "short", groups=2, group_size=2, learner_seconds=1.0)
    (run / "config.toml").write_text(
        '[[env]]\nid = "calculator"\nname = "fake"\n', encoding="utf-8"
    )
    scored, table, _ = find_record(f"{run}/g000001.1")
    assert (scored.trajectory.id, table.id) == ("g000001.1", Calculator.name)


async def test_a_record_is_read_back_as_it_was_written(record):
    assert read_trajectory(record.as_json()) == record


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 3))
def test_any_text_and_noise_come_back(said, argument, noise):
    message = Message("assistant", said, (ToolCall("t", {"a": argument}),))
    trajectory = Trajectory(
        id=said,
        group="g",
        env="kitchen",
        task=replace(Task("kitchen", {"n": argument}), noise=noise),
        opening=(message,),
        turns=(),
        stop_reason="completed",
        env_rewards={},
        phases=(Phase("reset", 1.0, 2.0),),
        notes={"sandbox": said},
    )
    scored = ScoredTrajectory(trajectory, {"solved": 0.5}, 0.5)
    assert read_trajectory(scored.as_json()) == scored


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"id": 1', json.dumps({"task": 3})])
def test_a_line_that_is_no_record_is_refused(line):
    with pytest.raises(NoRecord):
        read_trajectory(line)


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("os._exit(3)", "importing it ended the process with exit status 3: let it raise"),
        ("sys.exit(2)", "cannot be imported: SystemExit: 2"),
        ("time.sleep(99)", "importing it took over 1 s; if it is only slow, raise its deadlines"),
    ],
)
def test_a_plugin_that_cannot_be_imported_any_more_is_a_sentence(
    folder, monkeypatch, body, sentence
):
    monkeypatch.setattr("rl.env_tools.replay.check_plugins", check_plugins)
    monkeypatch.setattr("rl.plugin_check.ACT_SECONDS", 1.0)
    (folder / "world.py").write_text(f"import os, sys, time\n{body}", encoding="utf-8")
    (folder / "config.toml").write_text(
        f'[[env]]\nid = "{folder}/world.py:World"\nname = "kitchen"\n'
        "deadlines = { reset_seconds = 0.5 }\n",
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0"])
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output


def test_an_episode_is_played_again_where_no_task_can_be_drawn_any_more(folder):
    """As where its data set is away: the record has the task."""
    kitchen = Path(__file__).with_name("kitchen.py")
    (folder / "world.py").write_text(
        f"import sys\nsys.path.insert(0, {str(kitchen.parent)!r})\nfrom kitchen import Kitchen\n\n"
        "class World(Kitchen):\n    def tasks(self, split, seed):\n        raise OSError('away')\n",
        encoding="utf-8",
    )
    (folder / "config.toml").write_text(
        f'[[env]]\nid = "{folder}/world.py:World"\nname = "kitchen"\n', encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0"])
    assert done.exit_code == 0, done.output


def test_an_environment_that_ends_its_process_parts_and_is_named(folder, monkeypatch):
    monkeypatch.setattr(Kitchen, "score", lambda self: os._exit(3))
    done = CliRunner().invoke(app, ["env", "replay", f"{folder}/e0"])
    assert done.exit_code == 1
    assert "environment 'kitchen', score: SystemExit: it called _exit(3)" in done.output
