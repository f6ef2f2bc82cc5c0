"""Holds that a test depends on nothing but itself, and says which one leaves something behind.

Every test starts from the same random state, with one torch thread, without deterministic algorithms and with
the same variables for vLLM, Ray and torch; all but the first an engine or a learner sets for its process.
Whatever else a test leaves behind in the process is its failure: other environment variables, the working
directory, torch's defaults, compiled kernels, signal handlers, threads, child processes, a connection to Ray.

Left out: what a fixture of a module or of the session holds, which is there before the test begins.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

SEED = 0
# What is about to end may take so many seconds.
GRACE = float(os.environ.get("DORADO_TEST_GRACE", "20"))
# Variables that an engine, a learner or a library sets for the process it is alone in.
OF_A_PROCESS = (
    "VLLM_",
    "RAY_",
    "OMP_",
    "KMP_",
    "CUBLAS_",
    "GLOO_",
    "TORCH",
    "TRITON_",
    "TOKENIZERS_",
    "PYTORCH_",
    "TILELANG_",
)
# They stay for the process, or for a while: helpers of the standard library, the interpreters of another
# ecosystem, which serve every environment of their kind, and the processes that compare answers.
LASTING = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "lines_server.py",
    "reward.comparing",
)


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start every test from the same state, and fail one that leaves something behind."""
    same_start()
    before, variables = state(), dict(os.environ)
    yield
    of_a_process: str | tuple[str, ...] = OF_A_PROCESS
    # torch.compile sets a variable of its own, and raises the recursion limit.
    if request.node.get_closest_marker("compiler"):
        of_a_process = (*OF_A_PROCESS, "_TORCHINDUCTOR")
        sys.setrecursionlimit(before.settings["the recursion limit"])
    # vLLM sets LD_PRELOAD and more in the process in which an engine is started.
    if request.node.get_closest_marker("engine"):
        of_a_process = ""
    for name in [n for n in {*os.environ, *variables} if n.startswith(of_a_process)]:
        _put_back(name, variables)
    left = left_behind(before)
    assert not left, "the test left behind:\n" + "\n".join(left)


def _put_back(name: str, variables: dict[str, str]) -> None:
    if name.startswith("PYTEST_"):  # pytest's own affair
        return
    if name not in variables:
        del os.environ[name]
    elif os.environ.get(name) != variables[name]:
        os.environ[name] = variables[name]


def same_start() -> None:
    """Set the random state, and put back what a learner sets for its process."""
    random.seed(SEED)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(SEED)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(SEED)
        if torch.are_deterministic_algorithms_enabled():  # setting it takes 20 ms, each time
            torch.use_deterministic_algorithms(False)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)


@dataclass(frozen=True)
class State:
    """The state of this process that a test has to leave as it found it, by name."""

    variables: dict[str, str]
    settings: dict[str, Any]
    running: dict[str, str]

    def left_since(self, before: "State") -> list[str]:
        """A line for each difference. A setting that was not there before came with an import."""
        names = sorted(self.variables.keys() | before.variables.keys())
        lines = [
            f"environment variable {name}: {was!r} before, {now!r} after"
            for name in names
            if (was := before.variables.get(name)) != (now := self.variables.get(name))
        ]
        lines += [
            f"{name}: {before.settings[name]} before, {now} after"
            for name, now in self.settings.items()
            if name in before.settings and before.settings[name] != now
        ]
        return lines + [f"{name}: {self.running[name]}" for name in self.started_since(before)]

    def started_since(self, before: "State") -> list[str]:
        """Threads, and processes but for those that a fixture's own threads may have started meanwhile."""
        kinds = ("thread ",) if any(n.startswith("thread ") for n in before.running) else ("",)
        started = self.running.keys() - before.running.keys()
        return sorted(name for name in started if name.startswith(kinds))


def state() -> State:
    """The state now."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return State(variables, _settings(), _threads() | _children())


def left_behind(before: State) -> list[str]:
    """What a test has left since `before`, after a grace for what is about to end."""
    deadline = time.monotonic() + GRACE
    after = state()
    while after.started_since(before) and time.monotonic() < deadline:
        time.sleep(0.02)
        after = state()
    return after.left_since(before)


def _settings() -> dict[str, Any]:
    found: dict[str, Any] = {
        "the working directory": os.getcwd(),
        "the recursion limit": sys.getrecursionlimit(),
        "the switch interval": sys.getswitchinterval(),
        "the handler of SIGINT": _handler(signal.SIGINT),
        "the handler of SIGTERM": _handler(signal.SIGTERM),
    }
    if (torch := sys.modules.get("torch")) is not None:
        found["torch's default dtype"] = torch.get_default_dtype()
        found["torch's grad mode"] = torch.is_grad_enabled()
    if (kernels := sys.modules.get("trainer.cpu.row_kernel")) is not None:
        found["compiled kernels"] = kernels._compiled
    if (ray := sys.modules.get("ray")) is not None:
        found["a connection to Ray"] = ray.is_initialized()
    return found


def _handler(number: signal.Signals) -> object:
    """The handler of a signal. That of socket.io's client is put before the usual one once, and calls it; Ray
    leaves its own, which ends the process, when it is shut down."""
    handler = signal.getsignal(number)
    if getattr(handler, "__module__", "").startswith("ray."):
        return signal.SIG_DFL
    if getattr(handler, "__module__", "").startswith(("engineio", "socketio")):
        return signal.default_int_handler
    return handler


def _threads() -> dict[str, str]:
    """Threads that the end of the process would wait for."""
    return {
        f"thread {one.ident}": one.name
        for one in threading.enumerate()
        if not one.daemon and one is not threading.main_thread()
    }


def _children() -> dict[str, str]:
    """Child processes that have not ended."""
    try:  # far cheaper than to look, and mostly there are none
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    found: dict[str, str] = {}
    for child in _own_processes():
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if line and not any(name in line for name in LASTING):
            found[f"process {child.pid}"] = line[:200]
    return found


def _own_processes() -> list[psutil.Process]:
    """The child processes; by the kernel's own list where it keeps one: a search takes 30 times as long."""
    try:
        lists = [p.read_text(encoding="utf-8") for p in Path("/proc/self/task").glob("*/children")]
    except OSError:  # of a thread that has ended meanwhile
        lists = []
    if not lists:
        return psutil.Process().children()
    found: list[psutil.Process] = []
    for number in " ".join(lists).split():
        with suppress(psutil.Error):
            found.append(psutil.Process(int(number)))
    return found
