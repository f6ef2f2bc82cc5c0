"""Agents in containers of a real engine, where one is: played, judged, ended, and never a fault scored."""

import asyncio
import subprocess
import sys
import time

import pytest
from agent_play import play_agent
from agent_scripts import MULTIPLIER, PLAIN
from container_image import engines, image_of, refusal
from fakes import END
from test_agents import ROW, made, write_files

from envs.agents.container_workshop import ContainerWorkshop
from envs.agents.workshop import ContainerConfig, Plan
from envs.env import Task
from envs.session import HostFault

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module", params=engines() or ["none here"])
def engine(request) -> str:
    if request.param == "none here":
        pytest.skip("no container engine answers")
    return request.param


@pytest.fixture(scope="module")
def image(engine, tmp_path_factory) -> str:
    name = image_of(engine, tmp_path_factory.mktemp("image"))
    if why := refusal(engine):
        pytest.skip(f"{engine} runs no container here: {why}")
    return name


def containers(engine: str) -> list[str]:
    """Names of all that there are."""
    told = subprocess.run([engine, "ps", "--all", "--format", "{{.Names}}"], capture_output=True)
    return [name for name in told.stdout.decode().split() if name.startswith("dorado-episode")]


async def test_an_unmodified_agent_plays_in_a_container_and_leaves_none(
    renderer, tmp_path, engine, image
):
    script = PLAIN + 'open("answer.txt", "w").write(ask(sys.stdin.read())); print("done")'
    env = made(tmp_path, script, sandbox=engine, container={"image": image})
    env.probe()
    trajectory, played = await play_agent(renderer, env, ["42" + END], Task("agent", ROW))
    assert (trajectory.fault, trajectory.stop_reason) == ("", "completed"), trajectory.log
    assert trajectory.env_rewards == {"solved": 1.0} and trajectory.log == "done\n"
    assert len(played.requests) == 1 and containers(engine) == []


async def test_with_the_hosts_network_the_agent_asks_the_gateway_itself(
    renderer, tmp_path, engine, image
):
    script = PLAIN + 'open("answer.txt", "w").write(ask(sys.stdin.read()))'
    env = made(tmp_path, script, sandbox=engine, container={"image": image, "network": "host"})
    trajectory, _ = await play_agent(renderer, env, ["42" + END], Task("agent", ROW))
    assert trajectory.env_rewards == {"solved": 1.0}, (trajectory.fault, trajectory.log)


async def test_a_task_folders_image_is_built_and_its_tests_judge_what_the_agent_left(
    renderer, tmp_path, engine, image
):
    task = tmp_path / "tasks" / "hello"
    files = {
        "instruction.md": "write hi to out.txt",
        "environment/Dockerfile": f"FROM {image}\nWORKDIR /work\nCOPY seed.txt ./\n",
        "environment/seed.txt": "7",
        "tests/expected": "hi 7",
        "tests/test.sh": (
            'sleep 1 & read -r said < out.txt; read -r wanted < "$TEST_DIR/expected"\n'
            '[ "$said" = "$wanted" ] && r=0.5 || r=0; echo $r > /logs/verifier/reward.txt\n'
        ),
    }
    write_files(task, files)
    script = PLAIN + (
        "import pathlib\n"
        "def solve(task):\n"
        "    said = ask(task['instruction'])\n"
        "    pathlib.Path('out.txt').write_text(said + ' ' + open('seed.txt').read() + '\\n')\n"
        "    pathlib.Path('/logs/verifier/reward.txt').write_text('9')\n"
    )
    settings = {"agent": f"{tmp_path / 'agent.py'}:solve", "tasks": str(tmp_path / "tasks")}
    env = made(tmp_path, script, **settings, answer_file="", sandbox=engine, dockerfile="build")
    [data] = [t for split in ("train", "heldout") for t in env._tasks(split)]
    trajectory, _ = await play_agent(renderer, env, ["hi" + END], data)
    assert trajectory.env_rewards == {"solved": 0.5}, (trajectory.fault, trajectory.log)


async def test_an_image_that_cannot_be_built_is_the_environments_fault(
    renderer, tmp_path, engine, image
):
    task = tmp_path / "tasks" / "hello"
    dockerfile = f"FROM {image}\nCOPY nothing.txt ./\n"
    files = {
        "instruction.md": "do",
        "tests/test.sh": "true",
        "environment/Dockerfile": dockerfile,
    }
    write_files(task, files)
    settings = {"tasks": str(tmp_path / "tasks"), "answer_file": "", "sandbox": engine}
    env = made(tmp_path, MULTIPLIER, **settings, dockerfile="build")
    [data] = [t for split in ("train", "heldout") for t in env._tasks(split)]
    trajectory, _ = await play_agent(renderer, env, [], data)
    assert trajectory.stop_reason == "env_fault" and "nothing.txt" in trajectory.fault


async def test_inside_there_is_no_network_no_secret_on_a_command_line_and_nothing_stays(
    tmp_path, engine, image
):
    (tmp_path / "data").write_text("shown", encoding="utf-8")
    container = ContainerConfig(image, processes=64)
    shop = ContainerWorkshop(Plan(engine, readable=(str(tmp_path),), container=container))
    await shop.open()
    folder = shop.folder.path
    try:
        look = f"cat {tmp_path}/data; cat /proc/net/dev; echo x > {tmp_path}/data; sleep 300 &"
        ended = await shop.run(["bash", "-c", f"{look} setsid sleep 301 &"])
        assert ended.code == 0 and "shown" in ended.output and "Read-only" in ended.output
        assert "eth0" not in ended.output
        left = await shop.run(["bash", "-c", "cat /proc/[0-9]*/cmdline"])
        assert "sleep" not in left.output.replace("\0", " ").replace("read -r end", "")
        assert (await shop.run(["bash", "-c", "exit 7"])).code == 7
        assert (
            await shop.run(["bash", "-c", 'echo "$K"'], variables={"K": "v w"})
        ).output == "v w\n"
        path = {"PATH": "/bin:/nowhere", "HOME": "/x"}
        assert (await shop.run(["bash", "-c", "echo $PATH $HOME"], variables=path)).output == (
            "/bin:/nowhere /x\n"
        )
        assert (await shop.run(["cat"], stdin="é\n")).output == "é\n"
        with pytest.raises(TimeoutError):
            await shop.run(["sleep", "300"], seconds=1.0)
        bomb = "f() { f | f & }; f; exec sleep 300"
        with pytest.raises(TimeoutError):
            await shop.run(["bash", "-c", bomb], seconds=2.0)
        assert (await shop.run(["bash", "-c", "exit 0"])).code == 0
        await shop.run(["bash", "-c", "echo 1 > a; mkdir b; head -c 9000000 /dev/zero > c"])
        assert [await shop.read(name, 9) for name in "abd"] == ["1\n", None, None]
        assert await shop.read("c", 9) == "\0" * 9
    finally:
        await shop.remove()
    assert containers(engine) == [] and not folder.exists()


async def test_a_container_that_ends_is_its_machines_fault_and_no_exit_code(engine, image):
    shop = ContainerWorkshop(Plan(engine, container=ContainerConfig(image)))
    await shop.open()
    try:
        running = asyncio.create_task(shop.run(["sleep", "300"]))
        await asyncio.sleep(1.0)
        subprocess.run([engine, "kill", shop.name], capture_output=True, check=True)
        with pytest.raises(HostFault, match="ended"):
            await running
        with pytest.raises(HostFault):
            await shop.read("answer.txt")
    finally:
        await shop.remove()


def test_what_ends_us_ends_the_container(engine, image, tmp_path):
    program = (
        "import asyncio, os\n"
        "from envs.agents.container_workshop import ContainerWorkshop\n"
        "from envs.agents.workshop import ContainerConfig, Plan\n"
        "async def main():\n"
        f"    shop = ContainerWorkshop(Plan({engine!r}, container=ContainerConfig({image!r})))\n"
        "    await shop.open(); print(shop.name, flush=True); await asyncio.sleep(300)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        name = process.stdout.readline().decode().strip()
        assert name in containers(engine)
        process.kill()
    until = time.monotonic() + 20
    while name in containers(engine):
        assert time.monotonic() < until, "it is still there"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("container", "said"),
    [({"image": "dorado/none:0"}, "no image"), ({"image": "", "memory": "1g"}, "container.image")],
)
def test_what_an_engine_lacks_is_said_at_the_start(tmp_path, engine, container, said):
    with pytest.raises(ValueError, match=said):
        made(tmp_path, MULTIPLIER, sandbox=engine, container=container).probe()
