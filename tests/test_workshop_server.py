"""Agents on another machine: over a real server of workshops they play as here, and nothing of them stays."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agent_play import play_agent
from agent_scripts import MULTIPLIER, PLAIN
from aiohttp import web
from fakes import END
from test_agents import CALL, ROW, made, write_files

from envs.agents import remote_wire
from envs.agents.archive import archive_of
from envs.agents.remote_workshop import RemoteWorkshop
from envs.agents.workshop import Plan
from envs.agents.workshop_server import WorkshopServer
from envs.env import Task
from envs.session import HostFault

pytestmark = pytest.mark.process
LEVELS = [
    "none",
    pytest.param(
        "bubblewrap", marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap")
    ),
]


@contextlib.asynccontextmanager
async def serving(sandbox: str = "none", **more: Any) -> AsyncIterator[tuple[WorkshopServer, str]]:
    """A server of workshops, and its address."""
    server = WorkshopServer(sandbox, **more)
    runner = web.AppRunner(server.application(), shutdown_timeout=5.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
        assert server.sessions == {}


@pytest.mark.parametrize("sandbox", LEVELS)
async def test_an_unmodified_agent_plays_there_and_asks_the_gateway_here(
    renderer, tmp_path, sandbox
):
    async with serving(sandbox) as (server, address):
        env = made(tmp_path, MULTIPLIER, sandbox=address)
        trajectory, engine = await play_agent(
            renderer, env, [CALL + END, "42" + END], Task("agent", ROW)
        )
        assert (trajectory.fault, trajectory.stop_reason) == ("", "completed"), trajectory.log
        assert trajectory.env_rewards == {"solved": 1.0} and trajectory.log == "done: 42\n"
        assert [m.content for m in trajectory.turns[0].observations] == ["42"]
        assert len(engine.requests) == 2
        async with asyncio.timeout(10):
            while server.sessions:
                await asyncio.sleep(0.01)


async def test_a_verifier_and_its_folder_go_there_and_a_function_is_the_agent(renderer, tmp_path):
    check = (
        'read -r said < out.txt; read -r wanted < "$TEST_DIR/expected"\n'
        'echo "{\\"same\\": $([ "$said" = "$wanted" ] && echo 1 || echo 0)}" '
        '> "$LOGS_DIR/verifier/reward.json"\n'
    )
    write_files(tmp_path / "tests", {"expected": "hi 7", "check.sh": check})
    script = PLAIN + (
        "def solve(task):\n"
        "    open('out.txt', 'w').write(ask('x') + ' ' + open('deep/seed').read() + '\\n')\n"
    )
    row = {"instruction": "write", "files": {"deep/seed": "7"}}
    settings = {"answer_file": "", "verifier": str(tmp_path / "tests/check.sh")}
    async with serving() as (_, address):
        env = made(
            tmp_path, script, agent=f"{tmp_path / 'agent.py'}:solve", sandbox=address, **settings
        )
        trajectory, _ = await play_agent(renderer, env, ["hi" + END], Task("agent", row))
    assert trajectory.env_rewards == {"same": 1.0}, (trajectory.fault, trajectory.log)


async def test_a_server_that_is_lost_is_a_fault_of_the_host_and_no_reward(renderer, tmp_path):
    script = PLAIN + 'ask("x"); import time; time.sleep(60)'
    async with serving() as (server, address):
        env = made(tmp_path, script, sandbox=address)
        playing = asyncio.create_task(play_agent(renderer, env, ["1" + END], Task("agent", ROW)))
        while not any(session.shop for session in server.sessions.values()):
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        await next(iter(server.sessions.values())).socket.close()
        trajectory, _ = await playing
    assert trajectory.stop_reason == "host_fault" and "was lost in 'run'" in trajectory.fault


async def test_whoever_cancels_or_goes_leaves_no_program_and_no_folder(tmp_path):
    async with serving() as (server, address):
        shop = RemoteWorkshop(Plan(address))
        await shop.open()
        await shop.put(archive_of({"a/b.txt": "1"}))
        assert await shop.read("a/b.txt") == "1" and await shop.read("none") is None
        folder = next(iter(server.sessions.values())).shop.workspace.parent  # type: ignore[union-attr]
        program = f"echo $$ > {tmp_path}/pid; exec sleep 300"
        running = asyncio.create_task(shop.run(["bash", "-c", program]))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text(encoding="utf-8"):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(10):
            while server.sessions:
                await asyncio.sleep(0.01)
        pid = (tmp_path / "pid").read_text(encoding="utf-8").strip()
        assert not Path(f"/proc/{pid}").exists() and not folder.exists()
        with pytest.raises(HostFault, match="was lost"):
            await shop.read("a/b.txt")
        await shop.remove()


async def test_another_token_an_act_that_is_none_and_files_outside_are_refused(monkeypatch):
    async with serving(token="right") as (_, address):
        shop = RemoteWorkshop(Plan(address))
        with pytest.raises(HostFault, match="refuses the token in DORADO_SANDBOX_TOKEN"):
            await shop.open()
        await shop.remove()
        monkeypatch.setenv(remote_wire.TOKEN_VARIABLE, "right")
        shop = RemoteWorkshop(Plan(address))
        await shop.open()
        with pytest.raises(ValueError, match="unpacked"):
            await shop.put(b"no archive")
        with pytest.raises(RuntimeError, match="No such file"):
            await shop.run(["/no/such/program"])
        with pytest.raises(TimeoutError):
            await shop.run(["sleep", "60"], seconds=0.2)
        assert (await shop.run(["bash", "-c", "echo $K; exit 3"], variables={"K": "v"})).code == 3
        assert shop._socket is not None
        await shop._socket.send_str('{"act": "none"}')
        answer = await shop._answers.get()
        assert answer is not None and answer.failed is not None and answer.failed.kind == "value"
        await shop.remove()


async def test_an_address_without_a_server_is_one_sentence(tmp_path):
    env = made(tmp_path, MULTIPLIER, sandbox="http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"no server of workshops answers at http://127.0.0.1:9"):
        env.probe()
    with pytest.raises(ValueError, match="has to be one of"):
        made(tmp_path, MULTIPLIER, sandbox="chroot")
    with pytest.raises(ValueError, match=r"memroy"):
        made(tmp_path, MULTIPLIER, sandbox="docker", container={"image": "x", "memroy": "1g"})
    with pytest.raises(ValueError, match="nothing would use it"):
        made(tmp_path, MULTIPLIER, container={"image": "x"})
    assert os.environ.get(remote_wire.TOKEN_VARIABLE) is None
