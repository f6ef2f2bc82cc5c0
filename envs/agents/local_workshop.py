"""`LocalWorkshop`: a workspace on this machine, in bubblewrap or not confined.

At level "bubblewrap" a program sees the system's programs, what is named as readable, and the workspace (at
`/app`) alone; its one way out is to the gateway, and what it leaves running is ended with it. At level "none"
it may do what its user may; what it leaves running is found by a mark in its environment. Leaves out limits
on memory and disk.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from envs.agents import bridge
from envs.agents.access import ModelAccess
from envs.agents.archive import unpack
from envs.agents.program import Process, kill_group, run_program
from envs.agents.relay import PORT, SOCKET, relay
from envs.agents.workshop import LOGS, TESTS, Ended, Plan, Verdict
from envs.episode_folder import EpisodeFolder
from envs.sandbox.bubblewrap import INSTALL, NAMESPACES
from envs.sandbox.job import Job, variables
from envs.sandbox.limits import Limits
from envs.session import HostFault

_MARK = "DORADO_WORKSHOP"
# Until all that was killed is gone, looked for so often.
_END_SECONDS, _LOOK_SECONDS = 10.0, 0.01


def missing(sandbox: str) -> str:
    """Name what this machine lacks for a level, and how to get it; "" where it lacks nothing."""
    if sandbox == "bubblewrap" and shutil.which("bwrap") is None:
        return f'{INSTALL}; or name sandbox = "none": the agent may then do what you may'
    return ""


class LocalWorkshop:
    """The workspace of one episode, on this machine."""

    def __init__(self, plan: Plan) -> None:
        """plan: for the sandbox "bubblewrap" or "none"."""
        self.plan = plan
        self.confined = plan.sandbox == "bubblewrap"
        self.folder = EpisodeFolder()

    @property
    def workspace(self) -> Path:
        """The workspace, as this process sees it."""
        return self.folder.path / "app"

    @property
    def python(self) -> str:
        return sys.executable

    def at(self, script: Path) -> str:
        return str(script)

    async def open(self) -> None:
        if lacks := missing(self.plan.sandbox):
            raise HostFault(lacks)
        for name in ("app", "logs/verifier", "logs/agent"):
            (self.folder.path / name).mkdir(parents=True)

    async def put(self, archive: bytes) -> None:
        unpack(archive, self.workspace)

    async def read(self, name: str, most: int = 1_000_000) -> str | None:
        return self._text(f"app/{name}", most)

    async def run(
        self,
        argv: Sequence[str],
        *,
        access: ModelAccess | None = None,
        variables: Mapping[str, str] | None = None,
        stdin: str = "",
        seconds: float | None = None,
    ) -> Ended:
        return await self._run(argv, access, dict(variables or {}), stdin, seconds, {})

    async def judge(self, script: Path, variables: Mapping[str, str]) -> Verdict:
        self._clear("logs/verifier")
        tests = TESTS if self.confined else str(script.parent)
        argv = ["bash", f"{tests}/{script.name}"]
        told = {"TEST_DIR": tests, **variables}
        ended = await self._run(argv, None, told, "", None, {TESTS: str(script.parent)})
        left = [self._text(f"logs/verifier/reward.{kind}") for kind in ("txt", "json")]
        return Verdict(ended, *left)

    async def remove(self) -> None:
        self.folder.remove()

    async def _run(
        self,
        argv: Sequence[str],
        access: ModelAccess | None,
        more: dict[str, str],
        stdin: str,
        seconds: float | None,
        shown: Mapping[str, str],
    ) -> Ended:
        """shown: paths of the host by the names inside at which the program may read them."""
        async with contextlib.AsyncExitStack() as held:
            if self.confined:
                if access is not None:
                    socket = self.folder.path / "gateway.sock"
                    await held.enter_async_context(await relay(socket, access))
                    access = replace(access, url=f"http://127.0.0.1:{PORT}")
                argv = self._confined(argv, access is not None, shown)
                more = {"TMPDIR": "/tmp", **more}
            environment = self._variables(access, more)
            if not self.confined:
                environment["PATH"] = os.environ.get("PATH", "/usr/bin:/bin")
            async with asyncio.timeout(seconds):
                return await run_program(
                    argv,
                    environment=environment,
                    folder=self.workspace,
                    stdin=stdin,
                    end=self._end,
                )

    def _variables(self, access: ModelAccess | None, more: dict[str, str]) -> dict[str, str]:
        given = access.variables if access else {}
        inside = "/app" if self.confined else str(self.workspace)
        logs = LOGS if self.confined else str(self.folder.path / "logs")
        usual = {**variables(inside), "LOGS_DIR": logs, _MARK: self.folder.name}
        return {**usual, **given, **more}

    def _confined(self, argv: Sequence[str], asks: bool, shown: Mapping[str, str]) -> list[str]:
        """The command under bubblewrap, which hands on the variables it gets: on its command line any user
        of the machine could read the episode's secret."""
        own = [str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix).resolve())]
        ours = [str(Path(bridge.__file__).resolve()), *map(str, self.plan.scripts)]
        job = Job(tuple(argv), {}, Limits(), (*self.plan.readable, *own, *ours))
        parts = [
            shutil.which("bwrap") or "bwrap",
            "--die-with-parent",
            "--new-session",
            *NAMESPACES,
        ]
        if os.getuid() != 0:
            parts += ["--unshare-user"]
        parts += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
        for path in job.binds:
            parts += ["--ro-bind", path, path]
        for path, points_to in job.links.items():
            parts += ["--symlink", points_to, path]
        for path, inside in ((self.workspace, "/app"), (self.folder.path / "logs", LOGS)):
            parts += ["--bind", str(path), inside]
        for inside, path in shown.items():
            parts += ["--ro-bind", path, inside]
        if asks:
            parts += ["--bind", str(self.folder.path / "gateway.sock"), SOCKET]
            argv = [sys.executable, "-I", bridge.__file__, SOCKET, str(PORT), *argv]
        return [*parts, "--chdir", "/app", "--cap-drop", "ALL", "--", *argv]

    async def _end(self, process: Process) -> None:
        """Kill a program and all that it has begun, and wait until it is gone."""
        kill_group(process.pid)
        if self.confined:  # its namespace dies with it
            return
        mark = f"{_MARK}={self.folder.name}".encode()
        async with asyncio.timeout(_END_SECONDS):
            while found := [pid for pid in map(_pid, os.listdir("/proc")) if _has(pid, mark)]:
                for pid in found:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(_LOOK_SECONDS)

    def _clear(self, name: str) -> None:
        """Make a folder of the episode empty, whatever a program has put in its place."""
        path = self.folder.path / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)

    def _text(self, name: str, most: int = 1_000_000) -> str | None:
        """The text of a file that is there at the end; a link is none: an agent may point one anywhere."""
        path = self.folder.path / name
        try:
            if path.is_symlink() or not path.resolve().is_relative_to(self.folder.path.resolve()):
                return None
            with path.open("rb") as file:
                return file.read(most).decode(errors="replace")
        except OSError:
            return None


def _pid(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _has(pid: int, mark: bytes) -> bool:
    """True if a process has the variable, and is not dead already; 0 is none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False
