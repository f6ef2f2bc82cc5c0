"""What Dorado adds to vLLM's processes, where no other test sees it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.env_tools.soak.leaks import lives

ENGINE = """
import asyncio
import sys
import psutil
from rollout.config import EngineConfig, SamplingConfig
from rollout.vllm_engine import VllmEngine


async def main():
    config = EngineConfig(max_model_len=64, max_num_seqs=2)
    try:
        VllmEngine("engine-0", "/nowhere/at/all", config, SamplingConfig(), (0,), seed=0)
    except Exception:
        begun = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
        print("none, left", len(begun), flush=True)
    engine = VllmEngine("engine-0", sys.argv[1], config, SamplingConfig(), (0,), seed=0)
    await engine.start()
    print("started", *(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_vllms_core_ends_when_no_engine_comes_of_it_or_its_engine_is_killed(checkpoint, tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(ENGINE, encoding="utf-8")
    command = [sys.executable, str(script), str(checkpoint)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        nothing = next((line for line in process.stdout if line.startswith("none, ")), "")
        line = next((line for line in process.stdout if line.startswith("started ")), "")
        started = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        cores = [p for p in started if "EngineCore" in " ".join(p.cmdline())]
        process.kill()
    assert nothing == "none, left 0\n"
    assert cores
    give_up = time.monotonic() + 30
    while (alive := [core for core in cores if lives(core)]) and time.monotonic() < give_up:
        time.sleep(0.1)
    for core in alive:
        core.kill()
    assert not alive
