"""Run folders that were written before: the recorded quickstart, and one as the first releases wrote it."""

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nicegui.testing import User
from simulated_user import simulated_user

from rl.config import load_config
from rl.dashboard.demo import unpack
from rl.dashboard.learned_record import Learned, read_learned
from rl.dashboard.run_data import RunData
from rl.dashboard.server import PAGES
from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import find, hits
from rl.dashboard.trajectory_record import read_record
from rl.record.position import POSITION, Position, read_position
from rl.record.status import read_status
from rl.simulator.predict import run_as_simulation

OLD_METRICS = [
    {"step": 0, "time": 10.0, "eval/calculator/pass_rate": 0.25},
    {"step": 1, "time": 20.0, "rollout/calculator/reward": 0.5, "time/total_seconds": 5.0},
]
# Neither ledger, latency, actors, lost nor nodes; and a key that no release reads any more.
OLD_STATUS = {
    "time": 21.0,
    "stage": "training",
    "step": 1,
    "steps": 4,
    "learner": "waits for a batch",
    "window": [1],
    "pending": None,
    "engines": {"engine-0": 1},
    "in_flight": 8,
    "buffered": 0,
    "counts": {"calculator": {"tool": 8}},
    "waiting": [
        {
            "id": "g000001.0",
            "env": "calculator",
            "version": 1,
            "phase": "tool",
            "at": "host-0",
            "seconds": 3.0,
            "p99": None,
            "left": 27.0,
            "then": "failed: env_fault",
            "priority": 1,
        }
    ],
    "budget": {"calculator": 4},
}
OLD_INDEX = """
create table trajectories (
    id text primary key, grp text, env text, split text, task text, stop_reason text, reward real,
    outcome text, first_version integer, last_version integer, turns integer, tokens integer,
    completion_tokens integer, start real, seconds real, fault text, file text, offset integer
)
"""
OLD_TRAJECTORY = {
    "id": "g000000.0",
    "group": "g000000",
    "env": "calculator",
    "task": {"env": "calculator", "id": "t0", "data": {"seed": 1}},
    "opening": [{"role": "user", "content": "2 + 3?", "tool_calls": []}],
    "turns": [
        {
            "prompt_ids": [1, 2],
            "completion_ids": [3],
            "rollout_logprobs": [-0.5],
            "versions": [{"version": 0, "start": 0, "end": 1}],
            "finish_reason": "stop",
            "engine": "engine-0",
            "text": "5",
            "calls": [],
            "observations": [],
        }
    ],
    "stop_reason": "completed",
    "evidence": {"solved": 1.0},
    "phases": [{"name": "generate", "start": 11.0, "seconds": 0.5}],
    "fault": "",
    "trace": "",
    "rewards": {"solved": 1.0},
    "reward": 1.0,
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("demo")
    unpack(runs)
    return runs / "quickstart"


@pytest.fixture
def old(tmp_path) -> Path:
    """A run folder of a release that had no `learned` table, no experts, no origins."""
    folder = tmp_path / "runs" / "old"
    (folder / "trajectories").mkdir(parents=True)
    (folder / "config.toml").write_text(
        'name = "old"\nsteps = 4\nmode = "dora"\n', encoding="utf-8"
    )
    lines = "".join(json.dumps(one) + "\n" for one in OLD_METRICS)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    span = {"lane": "learner", "name": "step 1", "start": 11.0, "end": 16.0, "batch": 7}
    (folder / "events.jsonl").write_text(json.dumps(span) + "\n", encoding="utf-8")
    (folder / "status.json").write_text(json.dumps(OLD_STATUS), encoding="utf-8")
    (folder / "trajectories/controller-0.jsonl").write_text(
        json.dumps(OLD_TRAJECTORY) + "\n", encoding="utf-8"
    )
    with sqlite3.connect(folder / "trajectories.sqlite") as index:
        index.execute(OLD_INDEX)
        row = ("g000000.0", "g000000", "calculator", "train", "t0", "completed", 1.0, "sample")
        numbers = (0, 0, 1, 3, 1, 11.0, 0.5, "", "trajectories/controller-0.jsonl", 0)
        index.execute(f"insert into trajectories values ({','.join('?' * 18)})", (*row, *numbers))
    index.close()
    return folder


@pytest.fixture
async def user(request) -> AsyncIterator[User]:
    folder: Path = request.getfixturevalue(request.param)
    async with simulated_user(folder.parent) as user:
        yield user


@pytest.mark.heavy
@pytest.mark.parametrize("user", ["demo", "old"], indirect=True)
async def test_every_page_opens_on_a_run_that_was_written_before(user, request):
    folder: Path = request.getfixturevalue(request.node.callspec.params["user"])
    one = hits(folder, TrajectoryFilter())[0]
    named = {"{name}": folder.name, "{group_id:path}": one.group, "{id:path}": one.id}
    for page in PAGES:
        address = page.route
        for part, value in named.items():
            address = address.replace(part, value)
        answer = await user.http_client.get(address)
        assert answer.status_code == 200, address
        for wrong in (
            "cannot be read",
            "could not be read",
            "Internal Server Error",
            "There is no",
        ):
            assert wrong not in answer.text, address


def test_the_recorded_quickstart_is_read_whole(demo):
    run = RunData(demo)
    run.refresh()
    assert run.problems == [] and run.state() == "finished" and (run.step, run.steps) == (44, 44)
    count = {
        name: sum(1 for _ in (demo / name).open(encoding="utf-8"))
        for name in ("events.jsonl", "experts.jsonl")
    }
    assert len(run.spans) == count["events.jsonl"] and len(run.experts) == count["experts.jsonl"]
    first = json.loads((demo / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1])
    for key, value in first.items():
        if key not in ("step", "time"):
            assert run.series[key].values[run.series[key].steps.index(first["step"])] == value
    assert run.status is not None and run.summary is not None
    assert run.status == read_status(demo) and run.status.latency and run.status.actors
    assert (
        run.summary.ledger
        == json.loads((demo / "summary.json").read_text(encoding="utf-8"))["ledger"]
    )
    assert load_config(demo / "config.toml").steps == 44


def test_every_recorded_trajectory_of_the_quickstart_is_read(demo):
    learned = 0
    for page in (1, 2):
        for one in hits(demo, TrajectoryFilter(page=page)):
            view = read_record(demo, one)
            assert view.problems == () and view.id == one.id and view.turns
            made = read_learned(demo, one, view.num_policy_tokens)
            if isinstance(made, Learned):
                learned += 1
                for numbers in (made.advantages, made.learner_logprobs, made.entropies):
                    assert len(numbers) == view.num_policy_tokens
    assert learned


def test_the_recorded_quickstart_can_still_be_simulated(demo):
    config = load_config(demo / "config.toml", ["--runs_dir", str(demo.parent)])
    assert run_as_simulation(config, str(demo)).modes


def test_a_folder_of_the_first_releases_is_read_with_defaults_for_what_it_lacks(old):
    run = RunData(old)
    run.refresh()
    assert run.problems == [] and run.held_out == {"calculator": (0.25, None)}
    assert [span.name for span in run.spans] == ["step 1"] and run.experts == []
    status = read_status(old)
    assert status == run.status
    assert (status.asleep, status.silent, status.lost, status.ledger) == ((), (), (), {})
    assert status.waiting[0].id == "g000001.0"
    one = find(old, "g000000.0")
    assert one is not None and read_record(old, one).turns[0].versions == (0,)
    assert read_learned(old, one, 1) == "The run has no record of what the learner made of it."


def test_a_position_is_read_back_and_keys_that_are_not_known_are_left_alone(tmp_path):
    stored = {"drawn": {"a": {"0": 12}}, "credit": {"a": 0.5}, "levels": {"a": [1, 0]}}
    more = {"schema": 1, "groups": 7, "later": {}}
    (tmp_path / POSITION).write_text(json.dumps(stored | more), encoding="utf-8")
    assert read_position(tmp_path) == (7, Position(**stored))
