"""W&B beside the run folder: offline without a key, and `wandb sync` brings the same keys to a server."""

import asyncio
import json
import os
import sys

import pytest
from wandb_server import wandb_server

from rl.config import EnvTable, InitConfig, ModelConfig, RunConfig
from rl.record.run_folder import RunFolder
from rl.record.wandb_sink import WandbSink

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


async def test_a_run_without_a_key_is_offline_and_sync_brings_its_metrics_to_the_server(
    tmp_path, nobody
):
    config = RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )
    folder = RunFolder(config)
    sink = WandbSink(config.wandb, folder)
    for step, values in enumerate(STEPS, 1):
        folder.metrics(step, values)
        sink.log(step, values)
    sink.close()
    folder.close()
    (offline,) = (folder.path / "wandb").glob("offline-run-*")

    async with wandb_server() as server:
        known = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        sync = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wandb", "sync", str(offline)),
            env=os.environ | known,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(sync.communicate(), 120)
    assert sync.returncode == 0, said.decode()
    assert server.runs == {(folder.path / "wandb.id").read_text().strip()}, said.decode()
    rows = [{k: v for k, v in row.items() if k[0] != "_"} for row in server.history]
    assert rows == STEPS, server.asked
    assert [row["_step"] for row in server.history] == [1, 2]
    written = (folder.path / "metrics.jsonl").read_text().splitlines()
    for line, row in zip(map(json.loads, written), rows, strict=True):
        assert row.items() <= line.items()
