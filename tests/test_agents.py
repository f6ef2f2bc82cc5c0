"""Agents in workspaces: played over the gateway, ended with what they began, scored on what they left."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from agent_play import play_agent
from agent_scripts import MULTIPLIER, PLAIN
from fakes import END

from envs.agents.agent import Agent, AgentConfig
from envs.agents.local_workshop import LocalWorkshop
from envs.agents.workshop import Plan
from envs.env import Task
from rl.samples.samples import by_segment, train_sample
from rollout.engine import EngineFault

pytestmark = pytest.mark.process
CALL = (
    "<longcat_tool_call>multiply"
    "<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>6</longcat_arg_value>"
    "<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>7</longcat_arg_value>"
    "</longcat_tool_call>"
)
ROW = {"instruction": "6 times 7 ?", "answer": "42"}
LEVELS = [
    "none",
    pytest.param(
        "bubblewrap", marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap")
    ),
]


def made(tmp_path: Path, script: str, **config) -> Agent:
    """The environment with a script as its agent and one row as its task."""
    (tmp_path / "agent.py").write_text(script, encoding="utf-8")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    usual = {
        "agent": str(tmp_path / "agent.py"),
        "tasks": str(tmp_path / "tasks.jsonl"),
        "sandbox": "none",
        "answer_file": "answer.txt",
    }
    return Agent(AgentConfig(**{**usual, **config}))


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Files by name below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


async def played(renderer, env: Agent, script, task=None, **config):
    """The trajectory of one episode, and its engine."""
    return await play_agent(renderer, env, script, task or Task("agent", ROW), **config)


@pytest.mark.parametrize("level", LEVELS)
async def test_an_unmodified_agent_plays_and_is_scored_on_what_it_left(renderer, tmp_path, level):
    env = made(tmp_path, MULTIPLIER, sandbox=level)
    trajectory, engine = await played(renderer, env, [CALL + END, "42" + END])
    assert (trajectory.fault, trajectory.stop_reason) == ("", "completed"), trajectory.trace
    assert trajectory.env_rewards == {"solved": 1.0}
    assert trajectory.log == "done: 42\n" and trajectory.notes["sandbox"] == level
    assert [m.content for m in trajectory.turns[0].observations] == ["42"]
    sample = train_sample(trajectory, 1.0)
    assert sample.token_ids[: len(engine.requests[1].prompt_ids)] == engine.requests[1].prompt_ids
    assert {p.name for p in trajectory.phases} >= {"reset", "agent", "generate", "score", "close"}
    assert not env.shop.workspace.exists()


async def test_a_sub_agent_is_a_segment_of_the_trajectory(renderer, tmp_path):
    script = PLAIN + 'ask("sum up"); open("answer.txt", "w").write(ask(sys.stdin.read()))'
    trajectory, _ = await played(renderer, made(tmp_path, script), ["so" + END, "42" + END])
    assert [t.segment for t in trajectory.turns] == [0, 1]
    assert (trajectory.branches[0].message, trajectory.branches[0].role) == (0, "user")
    first, second = by_segment(train_sample(trajectory, 1.0), trajectory)
    assert (first.id, second.id) == ("g0.0", "g0.0~1")


async def test_an_agent_that_crashes_is_the_environments_fault_and_its_log_is_kept(
    renderer, tmp_path
):
    script = PLAIN + 'ask("x"); print("so far"); raise SystemExit("it broke")'
    trajectory, _ = await played(renderer, made(tmp_path, script), ["1" + END])
    assert trajectory.stop_reason == "env_fault" and "it broke" in trajectory.fault
    assert "so far" in trajectory.log and len(trajectory.turns) == 1
    scored, _ = await played(renderer, made(tmp_path, script, crash="score"), ["1" + END])
    assert (scored.stop_reason, scored.env_rewards) == ("completed", {"solved": 0.0})


async def test_an_agent_that_runs_into_the_episodes_limit_is_judged(renderer, tmp_path):
    script = PLAIN + "for i in range(9): ask(str(i))"
    trajectory, _ = await played(renderer, made(tmp_path, script), ["1" + END] * 9, max_turns=2)
    assert (trajectory.stop_reason, trajectory.judged) == ("max_turns", True)
    assert len(trajectory.turns) == 2 and trajectory.env_rewards == {"solved": 0.0}


async def test_an_engine_that_fails_ends_the_agent_and_is_nobodys_zero(renderer, tmp_path):
    script = PLAIN + 'import time\ntry: ask("x")\nfinally: time.sleep(60)'
    fault = EngineFault("engine-0 died")
    trajectory, _ = await played(renderer, made(tmp_path, script), [fault])
    assert (trajectory.stop_reason, trajectory.fault) == ("engine_fault", "engine-0 died")


async def test_a_silent_agent_is_ended_with_what_it_began(renderer, tmp_path):
    script = PLAIN + (
        "import subprocess, time\n"
        f'child = subprocess.Popen(["sleep", "300"], start_new_session=True)\n'
        f'open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))\n'
        'ask("x"); time.sleep(300)'
    )
    env = made(tmp_path, script)
    trajectory, _ = await played(renderer, env, ["1" + END], agent_seconds=1.0)
    assert trajectory.stop_reason == "env_fault" and "within 1 s" in trajectory.fault
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    assert not Path(f"/proc/{pid}/environ").exists() or not _marked(str(pid), b"DORADO_WORKSHOP")


async def test_an_agent_that_asks_nothing_is_a_fault(renderer, tmp_path):
    trajectory, _ = await played(renderer, made(tmp_path, "print('hello')"), [])
    assert trajectory.stop_reason == "env_fault" and "without asking" in trajectory.fault
    env = made(tmp_path, "")
    (tmp_path / "tasks.jsonl").write_text('{"instruction": "6 times 7 ?"}', encoding="utf-8")
    with pytest.raises(ValueError, match="answer_file is held to each task's 'answer'"):
        env.probe()


@pytest.mark.parametrize("level", LEVELS)
async def test_a_task_folder_is_judged_by_its_tests_and_a_function_can_be_the_agent(
    renderer, tmp_path, level
):
    task = tmp_path / "tasks" / "hello"
    files = {
        "instruction.md": "write hi to out.txt",
        "environment/seed.txt": "7",
        "tests/test.sh": (
            "#!/bin/bash\n"
            'read -r said < out.txt; [ "$said" = "hi 7" ] && reward=0.5 || reward=0\n'
            'echo $reward > "$LOGS_DIR/verifier/reward.txt"\n'
        ),
    }
    write_files(task, files)
    script = PLAIN + (
        "def solve(task):\n"
        "    said = ask(task['instruction'])\n"
        "    open('out.txt', 'w').write(said + ' ' + open('seed.txt').read())\n"
        "    os.makedirs(os.environ['LOGS_DIR'] + '/verifier', exist_ok=True)\n"
        "    open(os.environ['LOGS_DIR'] + '/verifier/reward.txt', 'w').write('9')\n"
    )
    agent = {"agent": f"{tmp_path / 'agent.py'}:solve", "tasks": str(tmp_path / "tasks")}
    env = made(tmp_path, script, **agent, answer_file="", sandbox=level)
    [data] = [t for split in ("train", "heldout") for t in env._tasks(split)]
    trajectory, _ = await played(renderer, env, ["hi" + END], data)
    assert trajectory.env_rewards == {"solved": 0.5}, trajectory.trace


@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap")
async def test_in_the_sandbox_an_agent_reaches_nothing_but_its_workspace(tmp_path):
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    shop = LocalWorkshop(Plan("bubblewrap"))
    try:
        await shop.open()
        looked = (
            f"ls {tmp_path}/secret {Path.cwd()}/rl; touch /usr/x; touch here && echo wrote;"
            "cat /proc/net/dev | tail -n +3 | cut -d: -f1"
        )
        ended = await shop.run(["bash", "-c", looked])
        assert "wrote" in ended.output and ended.output.split()[-1] == "lo"
        assert ended.output.count("No such file") == 2 and "Read-only" in ended.output
        assert (shop.workspace / "here").exists()
    finally:
        await shop.remove()


async def test_a_cancelled_program_leaves_nothing(tmp_path):
    shop = LocalWorkshop(Plan("none"))
    await shop.open()
    script = f"setsid sleep 300 & echo $! > {tmp_path}/pid; setsid -f sleep 301; sleep 300"
    running = asyncio.create_task(shop.run(["bash", "-c", script]))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text(encoding="utf-8"):
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    mark = f"DORADO_WORKSHOP={shop.folder.name}".encode()
    alive = [pid for pid in os.listdir("/proc") if pid.isdigit() and _marked(pid, mark)]
    await shop.remove()
    assert alive == []


def _marked(pid: str, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
