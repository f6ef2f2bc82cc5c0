"""W&B beside the run folder: offline without a key, and `wandb sync` brings the same keys to a server."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_trackers import whole_run
from wandb_server import WandbServer, wandb_server

from rl.config import InitConfig, ModelConfig, RunConfig
from rl.env_table import EnvTable
from rl.record.run_folder import RunFolder
from rl.trackers import trackers as trackers_module
from rl.trackers.trackers import Trackers

pytestmark = pytest.mark.process

STEPS = [
    {"rollout/all/reward": 0.25, "time/total_seconds": 4.5},
    {"rollout/all/reward": 0.75, "time/total_seconds": 4.25, "env/units/breaker": 0.0},
]


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user whom W&B does not know."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def run_folder(tmp_path: Path) -> RunFolder:
    config = RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )
    return RunFolder(config)


async def synced(run: Path, *options: str) -> tuple[WandbServer, int | None, str]:
    """What `wandb sync` of a run brings to a server; its exit code and output."""
    async with wandb_server() as server:
        known = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        sync = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wandb", "sync", *options, str(run)),
            env=os.environ | known,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(sync.communicate(), 120)
    return server, sync.returncode, said.decode()


async def test_a_run_without_a_key_is_offline_and_sync_brings_its_metrics_to_the_server(
    tmp_path, nobody
):
    folder = run_folder(tmp_path)
    sink = Trackers(folder)
    for step, values in enumerate(STEPS, 1):
        folder.metrics(step, values)
        sink.look()
    sink.close()
    folder.close()
    (offline,) = (folder.path / "wandb").glob("offline-run-*")

    server, code, said = await synced(offline)
    assert code == 0, said
    assert server.runs == {(folder.path / "wandb.id").read_text(encoding="utf-8").strip()}, said
    rows = [{k: v for k, v in row.items() if k[0] != "_"} for row in server.history]
    assert rows == STEPS, server.asked
    assert [row["_step"] for row in server.history] == [1, 2]
    written = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for line, row in zip(map(json.loads, written), rows, strict=True):
        assert row.items() <= line.items()


async def test_wandb_gets_histograms_a_table_of_each_evaluation_and_the_summary(tmp_path, nobody):
    played = await asyncio.to_thread(whole_run, tmp_path, "wandb")
    [offline] = (played.path / "wandb").glob("offline-run-*")
    [file] = offline.glob("files/media/table/evaluation/*.table.json")
    table = json.loads(file.read_text(encoding="utf-8"))
    assert table["columns"][:2] == ["id", "env"]
    assert [row[0] for row in table["data"]] == ["eval-step_1-0.0", "eval-step_1-0.1"]
    assert "6 times 7 ?" in table["data"][0][-1]
    server, code, said = await synced(offline)
    assert code == 0, said
    [first, *_] = server.history
    assert first["rollout/all/reward"] == 0.25
    assert first["trained/all/reward"]["_type"] == "histogram"
    assert sum(first["trained/all/reward"]["values"]) == 2
    tables = [row["evaluation/step_1"] for row in server.history if "evaluation/step_1" in row]
    assert [(one["_type"], one["nrows"]) for one in tables] == [("table-file", 2)]
    assert server.summary["wall_s"] == 9.5 and server.summary["status"] == "finished"


def no_process_left(folder: RunFolder) -> bool:
    """True once no process that follows this folder's metrics is there."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        there = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
        if not any(str(folder.path) in part for p in there for part in p.info["cmdline"]):
            return True
        time.sleep(0.1)
    return False


def helper(sink: Trackers) -> psutil.Process:
    """W&B's own process, once it is there."""
    assert sink.processes["wandb"].process is not None
    process = psutil.Process(sink.processes["wandb"].process.pid)
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        # W&B begins git too, for a moment each.
        if cores := [child for child in process.children() if child.name() == "wandb-core"]:
            return cores[0]
        time.sleep(0.1)
    raise AssertionError("W&B did not start")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["helper", "process"])
async def test_whoever_kills_wandb_the_run_hears_one_warning_and_no_step_is_lost(
    tmp_path, nobody, killed
):
    folder, said = run_folder(tmp_path), []
    sink = Trackers(folder, said.append)
    folder.metrics(1, STEPS[0])
    sink.look()
    victim = helper(sink)
    other = victim.parent()
    assert other is not None
    (victim if killed == "helper" else other).kill()
    victim.wait(20)
    folder.metrics(2, STEPS[1])
    sink.look()
    sink.close()
    folder.close()
    [warning] = said
    assert "it goes on offline, and `wandb sync` sends that" in warning
    assert str(folder.path / "logs/wandb.log") in warning and "Traceback" not in warning
    assert no_process_left(folder)
    newest = max((folder.path / "wandb").glob("offline-run-*"), key=os.path.getmtime)
    server, code, output = await synced(newest)
    assert code == 0, output
    assert [{k: v for k, v in row.items() if k[0] != "_"} for row in server.history] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({"WANDB_API_KEY": "abc"}, "API key must have 40"),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:1"}, "127.0.0.1:1"),
        ({"WANDB_MODE": "onlin"}, "onlin"),
        ({"WANDB_MODE": ""}, ""),
    ],
    ids=["bad key", "no network", "no such mode", "empty mode"],
)
def test_what_wandb_does_not_accept_is_one_warning_and_the_metrics_stay_in_the_folder(
    tmp_path, nobody, monkeypatch, variables, warning
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder, said = run_folder(tmp_path), []
    sink = Trackers(folder, said.append)
    for step, values in enumerate(STEPS, 1):
        folder.metrics(step, values)
        sink.look()
    sink.close()
    folder.close()
    assert len(said) == bool(warning) and all(warning in one for one in said), said
    assert list((folder.path / "wandb").glob("offline-run-*"))
    assert no_process_left(folder)


def test_a_wandb_that_does_not_end_is_ended(tmp_path, nobody, monkeypatch):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 0.3)
    folder, said = run_folder(tmp_path), []
    sink = Trackers(folder, said.append)
    sink.start()
    assert sink.processes["wandb"].process is not None
    psutil.Process(sink.processes["wandb"].process.pid).suspend()
    began = time.monotonic()
    for step in range(100):
        folder.metrics(step, STEPS[0])
        sink.look()
    sink.close()
    folder.close()
    assert time.monotonic() - began < 10
    assert len(said) == 1 and "did not take everything within 0.3 s" in said[0]
    assert no_process_left(folder)


def with_a_key(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Trackers, list[str]]:
    """A sink of a user whom the server knows, and what it says."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    folder, said = run_folder(tmp_path), []
    return Trackers(folder, said.append), said


def has_every_step(folder: RunFolder) -> bool:
    """True if metrics.jsonl ends with the last step, whatever W&B has done."""
    written = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in written] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["refuses", "hangs", "fails"])
async def test_a_server_that_does_not_take_the_run_is_one_warning_and_every_step_is_offline(
    tmp_path, nobody, monkeypatch, manner
):
    async with wandb_server(manner) as server:
        sink, said = with_a_key(tmp_path, server, monkeypatch)
        folder = sink.folder
        for step, values in enumerate(STEPS, 1):
            folder.metrics(step, values)
            sink.look()
        await asyncio.to_thread(sink.close)
        assert manner in server.asked, "it was asked"
    folder.close()
    [warning] = said
    assert f"W&B: Failed to authenticate with {server.address}" in warning
    assert "it goes on offline, and `wandb sync` sends that" in warning
    assert "Traceback" not in warning and "\n" not in warning
    assert has_every_step(folder) and no_process_left(folder)
    assert list((folder.path / "wandb").glob("offline-run-*"))


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["gone", "refuses", "hangs", "fails"])
async def test_a_server_that_is_lost_in_the_middle_is_one_warning_and_sync_sends_what_is_missing(
    tmp_path, nobody, monkeypatch, manner
):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 20.0)
    async with wandb_server() as server:
        sink, said = with_a_key(tmp_path, server, monkeypatch)
        folder = sink.folder
        folder.metrics(1, STEPS[0])
        sink.look()
        give_up = time.monotonic() + 60
        while not server.runs:
            assert time.monotonic() < give_up, server.asked
            await asyncio.sleep(0.1)
        if manner == "gone":
            await server.gone()
        else:
            server.manner = manner
        folder.metrics(2, STEPS[1])
        began = time.monotonic()
        sink.look()
        assert time.monotonic() - began < 1, "the run does not wait for it"
        await asyncio.to_thread(sink.close)
    folder.close()
    [warning] = said
    if manner == "refuses":
        options, kept = ("--no-skip-online",), "run-*"
        assert warning.startswith("W&B: its server refuses what it is sent, and gets nothing more")
        assert f"`wandb sync --no-skip-online {folder.path}/wandb/run-*` sends" in warning
    else:
        options, kept = (), "offline-run-*"
        assert warning.startswith("W&B: it did not take everything within 20 s; it goes on offline")
    assert has_every_step(folder) and no_process_left(folder)
    [run] = (folder.path / "wandb").glob(kept)
    again, code, output = await synced(run, *options)
    assert code == 0, output
    assert [{k: v for k, v in row.items() if k[0] != "_"} for row in again.history] == STEPS
