"""`dorado env soak`: the result table, an expert as a policy, and real hosts that leak or are killed."""

import contextlib
import io
import json
import random
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from envs.env import Env, EnvConfig, Expert, Task, call
from envs.registry import env_names
from envs.session import Deadlines, EnvSession
from rl.cli import app
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.env_tools.named_env import named_env
from rl.env_tools.soak.expert_policy import ExpertPolicy
from rl.env_tools.soak.figures import (
    Figures,
    Left,
    Percentiles,
    Plan,
    checks,
    deadlines,
    deadlines_toml,
    percentiles,
    result_table,
)
from rl.env_tools.soak.host import Census
from rl.env_tools.soak.leaks import left
from rl.env_tools.soak.run import EPISODE, own_ray, soak
from rl.samples.metrics import passed
from rollout.episode import Episode
from rollout.trajectory import Trajectory

pytestmark = pytest.mark.process

LEAKY = Path(__file__).parent / "leaky_envs.py"
QUICK = Percentiles(1024, 0.1, 0.5, 2.0, 3.0)
SLOW = Percentiles(1024, 200.0, 300.0, 312.0, 500.0)
GOOD = Figures(
    env="calculator",
    plan=Plan(),
    most_at_once=512,
    outcomes={"completed": 2000, "cancelled": 20, "host_fault": 100},
    begun=2120,
    not_full=0,
    complaint="",
    calls_per_second=900.0,
    at_host={"reset": SLOW, "tool": QUICK, "score": QUICK, "close": QUICK},
    seen={"reset": SLOW, "tool": SLOW, "score": SLOW},
    calm=Left(files=1),
    calm_episodes=512,
    after_all=Left(),
    killed=1,
    played_again=100,
    hosts_back=True,
    left_by_killed=0,
    close_faults=0,
)
CENSUS = Census(100, 0, 0, 3, 0, 40, 20, 0, (), 90.0)


def failed(figures: Figures) -> list[str]:
    return [one.name for one in checks(figures) if not one.passed]


def playable() -> list[str]:
    """The installed environments that have an expert and need no settings."""

    def has_expert(name: str) -> bool:
        try:
            return type(EnvTable(id=name).make()).expert is not Env.expert
        except ConfigError:
            return False

    return [name for name in env_names() if has_expert(name)]


def test_an_environment_that_leaks_nothing_and_loses_nothing_passes():
    assert failed(GOOD) == []
    assert GOOD.as_json(10)["passed"] is True


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"most_at_once": 511}, "episodes at once"),
        ({"begun": 2121}, "every episode accounted for"),
        (
            {"outcomes": {"completed": 2119, "env_fault": 1}},
            "every episode accounted for",
        ),
        ({"killed": 0}, "every episode accounted for"),
        ({"not_full": 1}, "expert's score full"),
        ({"after_all": Left(sessions=1)}, "episodes closed"),
        ({"calm": Left(environments=1)}, "episodes closed"),
        ({"close_faults": 1}, "episodes closed"),
        ({"calm": Left(processes=1)}, "processes ended"),
        ({"after_all": Left(orphans=1)}, "processes ended"),
        ({"calm": Left(threads=9)}, "threads ended"),
        ({"after_all": Left(tool_threads=1)}, "threads ended"),
        ({"after_all": Left(tasks=3)}, "threads ended"),
        ({"calm": Left(files=9)}, "files and sockets closed"),
        ({"after_all": Left(temporary=1)}, "temporary files removed"),
        ({"calm": Left(memory_mib=10.5)}, "memory given back"),
        ({"hosts_back": False}, "hosts came back"),
    ],
)
def test_each_thing_that_goes_wrong_fails_its_own_line(changed, name):
    assert failed(replace(GOOD, **changed)) == [name]


def test_where_nothing_was_completed_no_score_was_full():
    lost = replace(GOOD, outcomes={"host_fault": 2120})
    assert failed(lost) == ["expert's score full"]


def test_deadlines_are_p99_times_the_factor_and_never_below_a_second():
    assert deadlines(GOOD, 10) == {
        "reset_seconds": 3.2,
        "tool_seconds": 1.0,
        "score_seconds": 1.0,
        "close_seconds": 1.0,
    }
    replies = replace(GOOD, at_host={"tool": QUICK, "reply": SLOW})
    assert deadlines(replies, 100) == {"tool_seconds": 32.0}


def test_what_is_written_is_a_table_that_a_config_takes():
    written = tomllib.loads(deadlines_toml([GOOD], 10))
    table = EnvTable.model_validate(written["env"][0])
    assert (table.id, table.deadlines.reset_seconds) == ("calculator", 3.2)


def test_percentiles_are_of_what_was_measured():
    assert percentiles([i / 1e3 for i in range(1, 101)]) == Percentiles(100, 50, 95, 99, 100)
    assert percentiles([0.25]) == Percentiles(1, 250, 250, 250, 250)


def test_the_result_table_says_what_failed_and_each_phase():
    out = io.StringIO()
    Console(file=out, width=120).print(
        result_table(replace(GOOD, not_full=3, complaint="task ab: 0"))
    )
    assert "FAILED" in out.getvalue()
    assert "1997 of 2000; first: task ab: 0" in out.getvalue()
    assert "312.0" in out.getvalue()


def test_a_host_is_held_against_itself_and_a_new_one_against_a_fresh_one():
    grown = replace(CENSUS, files=60, temporary=("/tmp/a",))
    fresh = replace(CENSUS, pid=101, sessions=2)
    assert left([CENSUS], [grown, fresh]) == Left(sessions=2, files=20, temporary=1)


async def played(env: Env, task: Task, expert: Expert) -> Trajectory:
    policy = ExpertPolicy(expert, random.Random(0), 0.0)
    return await Episode(
        id="e0",
        group="e0",
        env=env.name,
        task=task,
        session=EnvSession(env, Deadlines()),
        generate=policy.generate,
        renderer=policy,
        config=EPISODE,
    ).run()


@pytest.mark.parametrize("name", playable())
async def test_an_expert_plays_from_the_task_alone_to_the_full_score(name):
    table = EnvTable(id=name)
    tasks = table.make().tasks("train", 3)
    for task in (next(tasks) for _ in range(3)):
        trajectory = await played(table.make(), task, table.make().expert(task))
        assert (trajectory.stop_reason, trajectory.fault) == ("completed", "")
        assert passed(trajectory.env_rewards, sum(trajectory.env_rewards.values()))


async def test_an_expert_that_stops_too_early_is_named():
    def expert() -> Expert:
        yield call("add", a=1, b=1)

    env = EnvTable(id="calculator").make()
    trajectory = await played(env, next(env.tasks("train", 0)), expert())
    assert "the expert ended and the environment did not" in trajectory.fault


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say which environment"),
        (["calculator", "--all"], "give no other"),
        (["calculater"], "did you mean 'calculator'?"),
        (["calculator", "--config", "{"], "--config"),
        (["kitchen:Unaided"], "offers no expert"),
        (["calculator", "--write", "/nowhere/at/all.toml"], "--write: the folder /nowhere/at"),
    ],
)
def test_a_soak_that_cannot_be_is_refused_with_a_sentence_before_anything_starts(
    arguments, sentence
):
    done = CliRunner().invoke(app, ["env", "soak", *arguments])
    assert (done.exit_code, sentence in " ".join(done.stderr.split())) == (2, True)


def leaking(leak: str, plan: Plan) -> list[str]:
    table = named_env(f"{LEAKY}:Leaky", json.dumps({"leak": leak}))
    return failed(soak(table, plan, lambda text: None))


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_real_hosts_that_are_killed_lose_nothing_and_each_leak_is_found():
    with own_ray(), contextlib.redirect_stdout(io.StringIO()):
        # Episodes that are under way still when a host is killed, however busy the machine is.
        plan = Plan(episodes=24, rounds=1, latency_ms=20, cancel=0.2, kills=2, hosts=2)
        figures = soak(named_env(f"{LEAKY}:Leaky"), plan, lambda text: None)
        assert failed(figures) == []
        assert figures.outcomes["cancelled"] > 0
        assert figures.outcomes["host_fault"] == figures.played_again > 0
        calm = replace(plan, cancel=0, kills=0, hosts=1)
        assert leaking("file", calm) == ["files and sockets closed"]
        assert leaking("instance", calm) == ["episodes closed"]
        assert leaking("close", calm) == ["episodes closed"]
        assert leaking("process", replace(plan, hosts=1, kills=1)) == ["processes ended"]
        # A cancelled reset takes nothing that its close, which came meanwhile, does not give back.
        slow = replace(plan, cancel=1.0, kills=0)
        assert failed(soak(named_env(f"{LEAKY}:SlowToOpen"), slow, lambda text: None)) == []


def test_the_deadlines_of_an_environment_are_its_own_settings():
    assert named_env("calculator", '{"difficulty": 1}').config == {"difficulty": 1}
    assert isinstance(named_env("calculator").make().config, EnvConfig)
