"""A run as a job of a real Ray job server: submitted, followed, listed, stopped, and nothing left of it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from dorado_command import marked

pytestmark = [pytest.mark.run, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
CONFIG = """
name = "job"
steps = 5000
wandb = { enabled = false }
batch = { groups = 2, group_size = 2, filter_zero_variance = false }
episode = { max_turns = 2, max_completion_tokens = 16, max_tokens = 128, max_seconds = 60 }
engine = { count = 1, max_model_len = 128 }
learner = { micro_batch_tokens = 128, threads = 1 }
eval = { before = false, after = false }

[[env]]
id = "worlds/greeting.py:Greeting"
"""
# A file of the project: the job has it only because the project was sent.
GREETING = """
from envs.env import Env
from envs.message import Message


class Greeting(Env):
    name = "greeting"

    def sample(self, rng):
        return {"n": rng.randint(1, 10**6)}

    async def reset(self, task):
        return [Message("user", f"greet number {task.data['n']}")]

    async def score(self):
        return {"long": float(len(str(self.answer)) > 8)}
"""
ACTORS = re.compile(r"ray::(Engine|LearnerActor|EnvHost|Controller)|EngineCore")


class Cluster:
    """A Ray head with a job server on the loopback; every process it starts carries a mark."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        # Sockets lie there, whose paths have to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="dj-", dir="/tmp"))
        ports = free_ports(4)
        self.address = f"http://127.0.0.1:{ports[1]}"
        self.environment = os.environ | {
            "DORADO_TEST_MARK": self.mark,
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            # A token of this cluster's own: who has none is not let in.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
            "RAY_API_SERVER_ADDRESS": "",
            "RAY_ADDRESS": "",
        }
        self.log = self.folder / "head.log"
        with self.log.open("w", encoding="utf-8") as log:
            self.head = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                    # Ray puts the machine's outer address in the place of 127.0.0.1.
                    *("--node-ip-address=127.0.0.2", f"--port={ports[0]}", "--num-cpus=2"),
                    *("--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}"),
                    f"--dashboard-agent-listen-port={ports[2]}",
                    f"--ray-client-server-port={ports[3]}",
                    f"--object-store-memory={256 * 2**20}",
                    f"--temp-dir={self.folder}",
                    "--disable-usage-stats",
                ],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def command(self, *arguments: str, folder: Path = ROOT) -> subprocess.Popen[str]:
        """`dorado ... --address` of this cluster."""
        return subprocess.Popen(
            [sys.executable, "-m", "rl", *arguments, "--address", self.address],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def done(self, *arguments: str) -> tuple[int, str]:
        process = self.command(*arguments)
        output, _ = process.communicate(timeout=200)
        return process.returncode, output

    def nodes(self) -> str:
        """A line for each node that the job server knows to be alive."""
        asks = "import sys; from rl.jobs.client import nodes_of; print(*nodes_of(sys.argv[1]), sep='\\n')"
        return subprocess.run(
            [sys.executable, "-c", asks, self.address],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            encoding="utf-8",
        ).stdout.strip()

    def marked(self) -> list[psutil.Process]:
        return marked(self.mark)

    def actors(self) -> list[str]:
        """The run's processes that are still there ten seconds from now, or none before."""
        deadline = time.monotonic() + 10
        while found := [line for p in self.marked() if ACTORS.search(line := command_of(p))]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return found

    def end(self) -> None:
        self.head.send_signal(signal.SIGTERM)
        try:
            self.head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.head.kill()
            self.head.wait()
        _, alive = psutil.wait_procs(self.marked(), timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Its lines up to the one that holds `text`, or to the end."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    try:
        deadline = time.monotonic() + 90
        while (answer := started.done("jobs"))[0] != 0 and time.monotonic() < deadline:
            assert started.head.poll() is None, started.log.read_text(encoding="utf-8")
            time.sleep(0.5)
        assert answer[0] == 0, answer[1] + started.log.read_text(encoding="utf-8")
        # The job server answers before the node is known to it, and a job waits for its agent there.
        while not started.nodes() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert started.nodes(), started.log.read_text(encoding="utf-8")
        yield started
    finally:
        started.end()


def books_balance(ledger: dict[str, dict[str, int]]) -> bool:
    return all(
        counts["dispatched"] == sum(n for state, n in counts.items() if state != "dispatched")
        and counts["in_flight"] == counts["buffered"] == 0
        for counts in ledger.values()
    )


def test_a_run_is_submitted_followed_listed_stopped_and_goes_on(
    cluster: Cluster, checkpoint: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "worlds").mkdir(parents=True)
    (project / "worlds" / "greeting.py").write_text(GREETING, encoding="utf-8")
    (project / "job.toml").write_text(CONFIG, encoding="utf-8")
    runs = tmp_path / "runs"
    request = ("submit", str(project / "job.toml"), "--model.path", str(checkpoint))

    code, said = cluster.done(*request, "--engine.count", "7")
    assert code == 2 and "asks for 7 CPUs" in said and "the cluster has 2 on 1 node\n" in said

    follower = cluster.command(*request, "--runs_dir", str(runs), "--follow")
    first = read_until(follower, "run folder: ")
    id = first.split("job: ")[1].split()[0]
    log = read_until(follower, "step 2/5000")
    assert "step 2/5000" in log, log

    listed = json.loads(cluster.done("jobs", "--json")[1])["jobs"]
    assert [(job["id"], job["status"]) for job in listed] == [(id, "RUNNING")]
    assert listed[0]["folder"] == str(runs / "job")
    assert "step 1/5000" in cluster.done("logs", id)[1]

    code, said = cluster.done("stop", id)
    assert code == 0 and said.startswith(f"{id}: asked to end, within 180 s"), said
    assert said.endswith(f"{id}: STOPPED\n") and "goes on after step_" in said, said
    rest, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130 and "interrupted; what there is lies in" in rest
    first = json.loads((runs / "job" / "summary.json").read_text(encoding="utf-8"))
    assert first["status"] == "interrupted" and books_balance(first["ledger"])
    done = first["steps"]
    assert [p.name for p in (runs / "job" / "checkpoints").iterdir()] == [f"step_{done}"]
    assert cluster.actors() == []
    assert cluster.done("stop", id) == (0, f"{id}: had ended before, STOPPED\n")

    # What is sent differs now, and so does the folder in which the job's copy of it lies.
    (project / "worlds" / "note.txt").write_text("another copy", encoding="utf-8")
    going_on = ("--resume", str(runs / "job"), "--steps", str(done + 2))
    code, said = cluster.done(*request, *going_on, "--follow")
    assert code == 0 and f"goes on after step {done}" in said, said
    last = json.loads((runs / "job" / "summary.json").read_text(encoding="utf-8"))
    assert (last["status"], last["steps"]) == ("finished", done + 2)
    assert last["resumed"]["step"] == done and books_balance(last["ledger"])
    # The engines have the weights that the learner goes on from.
    assert last["parity"]["mean_abs_dlogp"] <= 2e-5
    assert cluster.actors() == []
