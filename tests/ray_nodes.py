"""Several Ray nodes on this machine, each with an address of its own, and what runs on them.

Nodes are `ray start` processes. All their processes carry a mark and the node's number in their environment,
by which they are found: a node is killed as a whole, as a machine is lost, and nothing is left at the end.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
# So many seconds after a node has died Ray knows it; its own figures are for busier networks.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
JOINED = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Place:
    """Where a node is: its address, and what goes before a command that is to run there."""

    address: str
    enter: tuple[str, ...] = ()


class RayNodes:
    """A Ray cluster without a job server; the first place is the head's. cpus: of each node, by name."""

    def __init__(
        self, places: Sequence[Place], cpus: Sequence[int], *, modules: Sequence[Path] = ()
    ) -> None:
        """modules: folders of modules that only the head's node can import."""
        self.modules = list(map(str, modules))
        self.mark = uuid.uuid4().hex
        # Sockets lie there, whose paths have to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="dn-", dir="/tmp"))
        self.node_of = list(places)
        self.token = uuid.uuid4().hex * 2
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.address = f"{places[0].address}:{held.getsockname()[1]}"
        self.nodes = [self._start(number, cpus[number]) for number in range(len(places))]
        self._wait_for(len(places))

    def add(self, place: Place, cpus: int) -> int:
        """One node more; returns its number. Nothing is waited for."""
        self.node_of.append(place)
        self.nodes.append(self._start(len(self.nodes), cpus))
        return len(self.nodes) - 1

    def _wait_for(self, count: int) -> None:
        joined = self.command(0, sys.executable, "-c", JOINED, self.address, str(count))
        output, _ = joined.communicate(timeout=120)
        assert joined.returncode == 0, output + self.logs()

    def _start(self, number: int, cpus: int) -> subprocess.Popen[str]:
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        return self.command(
            number,
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *(head if number == 0 else [f"--address={self.address}"]),
            f"--node-ip-address={self.node_of[number].address}",
            f"--num-cpus={cpus}",
            # Nodes that share a machine would give their workers the same ports.
            *("--min-worker-port=0", "--max-worker-port=0"),
            f"--object-store-memory={128 * 2**20}",
            *([f"--temp-dir={self.folder}"] if number == 0 else []),
            "--disable-usage-stats",
            log=self.folder / f"node-{number}.log",
        )

    def command(
        self, number: int, *arguments: str, log: Path | None = None, folder: Path = ROOT
    ) -> subprocess.Popen[str]:
        """A process on a node."""
        environment = os.environ | HEALTH
        environment |= {
            "DORADO_TEST_MARK": self.mark,
            "DORADO_TEST_NODE": str(number),
            "DORADO_TEST_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join(
                [str(ROOT), str(ROOT / "tests"), *(self.modules if number == 0 else [])]
            ),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": "",
            "WANDB_MODE": "disabled",
        }
        return subprocess.Popen(
            [*self.node_of[number].enter, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE if log is None else log.open("w", encoding="utf-8"),
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def train(self, config: Path, *overrides: str) -> subprocess.Popen[str]:
        """`dorado train` on the head's node."""
        arguments = ("train", str(config), "--cluster.address", self.address, *overrides)
        return self.command(0, sys.executable, "-m", "rl", *arguments, folder=config.parent)

    def marked(self, number: int | None = None) -> list[psutil.Process]:
        """Processes of a node, or of all."""
        found = []
        for process in psutil.process_iter():
            try:
                variables = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if variables.get("DORADO_TEST_MARK") != self.mark:
                continue
            if number is None or variables.get("DORADO_TEST_NODE") == str(number):
                found.append(process)
        return found

    def running(self, number: int, pattern: str) -> list[str]:
        """Command lines of a node's processes that hold `pattern`."""
        lines: list[str] = []
        for process in self.marked(number):
            try:
                lines.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return [line for line in lines if pattern in line]

    def kill(self, number: int) -> None:
        """The node is gone from one moment to the next."""
        for process in self.marked(number):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.nodes[number].wait(timeout=20)

    def logs(self) -> str:
        """What the nodes have printed."""
        return "\n".join(
            log.read_text(encoding="utf-8") for log in sorted(self.folder.glob("node-*.log"))
        )

    def end(self) -> None:
        """End every node, and whatever is left of them."""
        for node in reversed(self.nodes):
            node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            try:
                node.wait(timeout=20)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        _, alive = psutil.wait_procs(self.marked(), timeout=5)
        for process in alive:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
