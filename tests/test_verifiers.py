"""Environments of the real package verifiers, in an interpreter of its own, played over the real gateway."""

import asyncio
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_play import play_agent
from fakes import END
from foreign import foreign_python

from envs.env import Task
from envs.interop.interpreter import child_interpreter
from envs.interop.verifiers import Verifiers, VerifiersConfig
from envs.settings import BadSettings, read_settings
from rl.samples.samples import train_sample

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
]  # the package alone takes seconds to be imported

HERE = str(Path(__file__).parent)
CALL = (
    "<longcat_tool_call>calc_add"
    "<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>3</longcat_arg_value>"
    "<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>3</longcat_arg_value>"
    "</longcat_tool_call>"
)
DATA = {"prompt": "3 plus 3 ?", "answer": 6}


@pytest.fixture(scope="module")
def python() -> str:
    return foreign_python(["verifiers==0.4.0"])


@pytest.fixture(scope="module")
def old_python() -> str:
    return foreign_python(["verifiers==0.3.1"])


def old(python: str, arguments: Any = None, **more: Any) -> Verifiers:
    """The environment of the older kind."""
    values = {"python": python, "environment": "legacy_arithmetic", "paths": [HERE]}
    config = read_settings(VerifiersConfig, {**values, "arguments": arguments or {}, **more})
    assert isinstance(config, VerifiersConfig)
    return Verifiers(config)


def made(python: str, heldout: dict[str, Any] | None = None, seat: Any = None, **taskset: Any):
    settings = {
        "taskset": {"id": "arithmetic_taskset", **taskset},
        **({"agent": seat} if seat else {}),
    }
    values = {"python": python, "settings": settings, "heldout": heldout or {}, "paths": [HERE]}
    config = read_settings(VerifiersConfig, values)
    assert isinstance(config, VerifiersConfig)
    return Verifiers(config)


async def played(renderer: Any, env: Verifiers, script: list[Any], row: Any = DATA, **config: Any):
    """The trajectory of one episode, and its engine."""
    task = Task("verifiers", {"row": row, "heldout": False})
    return await play_agent(renderer, env, script, task, **config)


async def test_an_episode_has_the_packages_tools_and_rewards_and_the_engines_tokens(
    renderer, python
):
    trajectory, engine = await played(renderer, made(python), [CALL + END, "6" + END])
    assert (trajectory.fault, trajectory.stop_reason) == ("", "completed"), trajectory.log
    assert trajectory.env_rewards == {"exact": 2.0, "wordy": 0.0}
    assert [m.content for m in trajectory.turns[0].observations] == ["6"]
    assert json.loads(trajectory.log)["metrics"] == {"calls": 1.0}
    assert trajectory.notes["verifiers"] == "0.4.0"
    sample = train_sample(trajectory, 1.0)
    assert sample.token_ids[: len(engine.requests[1].prompt_ids)] == engine.requests[1].prompt_ids


async def test_episodes_run_beside_each_other_and_each_has_its_own_answers(renderer, python):
    env = made(python)
    scripts = [["6" + END], ["7" + END], [CALL + END, "6" + END], ["six or seven" + END]]
    ended = await asyncio.gather(*(played(renderer, made(python), list(s)) for s in scripts))
    found = [trajectory.env_rewards for trajectory, _ in ended]
    assert [one["exact"] for one in found] == [2.0, 0.0, 2.0, 0.0]
    assert [one["wordy"] for one in found] == [0.0, 0.0, 0.0, -0.5]
    assert not [key for key in os.environ if key.startswith("DORADO_") and "API_KEY" in key]
    assert env.child.alive


async def test_an_environment_of_the_older_kind_plays_and_its_rubric_scores(renderer, old_python):
    env = old(old_python)
    row = next(env.tasks("train", 0)).data["row"]
    call = CALL.replace("calc_add", "add")
    script = [call + END, row["answer"] + END]
    trajectory, engine = await played(renderer, env, script, row)
    assert (trajectory.fault, trajectory.stop_reason) == ("", "completed"), trajectory.log
    assert trajectory.env_rewards == {"reward": 1.5}
    assert json.loads(trajectory.log)["metrics"]["exact"] == 1.0
    assert [m.content for m in trajectory.turns[0].observations] == ["6"]
    assert trajectory.notes["verifiers"] == "0.3.1"
    wrong, _ = await played(renderer, old(old_python), ["no" + END], row)
    assert wrong.env_rewards == {"reward": 0.5}
    many, engine = await played(renderer, old(old_python), [call + END] * 9, row, max_turns=2)
    assert many.stop_reason == "completed" and len(engine.requests) == 2, many.fault


def test_the_older_kind_has_held_out_tasks_of_its_own_where_asked(old_python):
    own = old(old_python, {"held_back": True, "num_examples": 5}, eval_dataset=True)
    answers = {t.data["row"]["answer"] for t in itertools.islice(own.tasks("heldout", 0), 10)}
    assert answers == {"200", "202", "204", "206", "208"}
    with pytest.raises(ValueError, match="no eval_dataset"):
        old(old_python, eval_dataset=True).probe()
    with pytest.raises(ValueError, match="nothing"):
        old(old_python, {"nothing": 1}).probe()


@pytest.mark.parametrize("limit", [{"max_turns": 2}, {"max_tokens": 180}])
async def test_an_episode_that_uses_up_its_limit_is_scored_by_the_package(renderer, python, limit):
    trajectory, engine = await played(renderer, made(python), [CALL + END] * 9, **limit)
    assert trajectory.stop_reason in ("completed", *limit), trajectory.fault
    assert trajectory.env_rewards == {"exact": 0.0, "wordy": 0.0}
    assert len(engine.requests) < 9


async def test_a_reward_that_raises_is_the_environments_fault_and_says_so(renderer, python):
    trajectory, _ = await played(renderer, made(python), ["6" + END], {**DATA, "trouble": "broken"})
    assert trajectory.stop_reason == "env_fault"
    assert "TaskError" in trajectory.fault and "no such thing" in trajectory.fault


async def test_an_episode_that_is_given_up_is_ended_in_the_child(renderer, python):
    env = made(python)
    trajectory, _ = await played(
        renderer, env, ["6" + END], {**DATA, "trouble": "slow"}, max_seconds=3
    )
    assert trajectory.stop_reason == "timeout"
    assert env.episode is not None
    number = env.episode
    assert await env.child.ask("ended", numbers=[number]) == {str(number): {"lost": True}}


async def test_a_child_that_dies_in_an_episode_is_the_hosts_fault_and_the_next_one_plays(
    renderer, python
):
    env = made(python)
    playing = asyncio.ensure_future(played(renderer, env, ["6" + END], {**DATA, "trouble": "slow"}))
    while env.episode is None:
        await asyncio.sleep(0.02)
    assert env.child.process is not None
    os.kill(env.child.process.pid, signal.SIGKILL)
    trajectory, _ = await playing
    assert trajectory.stop_reason == "host_fault", trajectory.fault
    again, _ = await played(renderer, made(python), ["6" + END])
    assert again.env_rewards == {"exact": 2.0, "wordy": 0.0}


def test_tasks_are_split_by_content_shuffled_by_seed_and_endless(python):
    env = made(python)
    env.probe()
    first = list(itertools.islice(env.tasks("train", 0), 60))
    assert [t.id for t in first] == [t.id for t in itertools.islice(env.tasks("train", 0), 60)]
    assert [t.id for t in first] != [t.id for t in itertools.islice(env.tasks("train", 1), 60)]
    heldout = {t.id for t in itertools.islice(env.tasks("heldout", 0), 30)}
    assert heldout and not heldout & {t.id for t in first}
    assert len(heldout | {t.id for t in first}) == 30
    other = made(python, heldout={"first": 100, "num_tasks": 5})
    rows = [t.data["row"]["answer"] for t in itertools.islice(other.tasks("heldout", 0), 5)]
    assert sorted(rows) == [200, 202, 204, 206, 208]
    assert len({t.id for t in itertools.islice(other.tasks("train", 0), 30)}) == 30


@pytest.mark.parametrize(
    ("taskset", "seat", "told"),
    [
        ({"id": "no_such_taskset"}, None, "no_such_taskset"),
        ({"nothing": 1}, None, "nothing"),
        ({"num_tasks": 0}, None, "has no task"),
        ({}, {"harness": {"id": "no_such_harness"}}, "no_such_harness"),
        (
            {},
            {"client": {"type": "eval", "base_url": "http://127.0.0.1:1/v1"}},
            "the policy plays one",
        ),
    ],
)
def test_settings_that_verifiers_refuses_are_one_sentence(python, taskset, seat, told):
    with pytest.raises(ValueError, match=told) as refused:
        made(python, seat=seat, **taskset).probe()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"settings": {"agent": {}}},
        {"settings": {"taskset": {"id": "a"}}, "environment": "b"},
        {"settings": {"taskset": {"id": "a"}}, "arguments": {"n": 1}},
    ],
)
def test_settings_that_name_no_environment_or_two_are_refused(values):
    with pytest.raises(BadSettings, match="config: "):
        read_settings(VerifiersConfig, {"python": "python", **values})


def test_an_interpreter_without_the_package_says_what_is_missing(tmp_path):
    child = child_interpreter(sys.executable, "verifiers_server.py", 30.0)
    with pytest.raises(Exception, match="verifiers"):
        child.ask_now("check", settings="{}")
    child.end()
