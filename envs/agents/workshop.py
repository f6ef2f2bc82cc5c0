"""`Workshop`: one episode's workspace, and programs at work in it: an agent, then what judges it.

Flows in: files, and commands. Flows out: how each ended, and what it wrote. At level "bubblewrap" a program
sees the system's programs, what is named as readable, and the workspace (at `/app`) alone; its one way out
is to the gateway, and what it leaves running is ended with it. At level "none" it may do what its user may;
what it leaves running is found by a mark in its environment. Leaves out limits on memory and disk.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from envs.agents import bridge
from envs.agents.access import ModelAccess
from envs.episode_folder import EpisodeFolder
from envs.sandbox.bubblewrap import NAMESPACES
from envs.sandbox.job import Job, variables
from envs.sandbox.limits import Limits

PORT = 8080
SOCKET = "/run/gateway.sock"
# Bytes of output that are kept: the first and the last of them.
MOST_OUTPUT = 100_000
_MARK = "DORADO_WORKSHOP"
# Until all that was killed is gone, looked for so often.
_END_SECONDS, _LOOK_SECONDS = 10.0, 0.01


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (128 + the signal's number), and what it wrote on both streams."""

    code: int
    output: str


class Workshop:
    """The workspace of one episode. Make, use, and `remove` it."""

    def __init__(self, level: str, readable: Sequence[str] = ()) -> None:
        """level: "bubblewrap" or "none". readable: paths of the host that programs may read."""
        self.level = level
        self.readable = tuple(readable)
        self.folder = EpisodeFolder()
        for name in ("app", "logs/verifier", "logs/agent"):
            (self.folder.path / name).mkdir(parents=True)

    @property
    def workspace(self) -> Path:
        """The workspace, as this process sees it."""
        return self.folder.path / "app"

    @property
    def inside(self) -> str:
        """The workspace, as programs see it."""
        return "/app" if self.level == "bubblewrap" else str(self.workspace)

    def put(self, name: str, content: str | bytes) -> None:
        """Write a file of the workspace. Raises ValueError for a name that leaves it."""
        path = (self.workspace / name).resolve()
        if not path.is_relative_to(self.workspace.resolve()):
            raise ValueError(f"the file {name!r} has to be a path below the workspace")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def clear(self, name: str) -> None:
        """Make a folder of the episode empty, whatever a program has put in its place."""
        path = self.folder.path / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, most: int = 1_000_000) -> str | None:
        """The text of a file that is there at the end, at most so many bytes; None where there is none.

        A link is none: an agent may point one anywhere.
        """
        path = self.folder.path / name
        try:
            if path.is_symlink() or not path.resolve().is_relative_to(self.folder.path.resolve()):
                return None
            with path.open("rb") as file:
                return file.read(most).decode(errors="replace")
        except OSError:
            return None

    async def run(
        self,
        argv: Sequence[str],
        *,
        access: ModelAccess | None = None,
        more: Mapping[str, str] | None = None,
        shown: Mapping[str, str] | None = None,
        stdin: str = "",
        seconds: float | None = None,
    ) -> Ended:
        """Run a program to its end, and end all that it has begun.

        access: the policy's, for an agent. more: variables of its environment. shown: paths of the host by
        the names inside at which it may read them. Raises TimeoutError after `seconds`, OSError where it
        cannot begin.
        """
        async with contextlib.AsyncExitStack() as held:
            if self.level == "bubblewrap":
                if access is not None:
                    await held.enter_async_context(await self._relay(access))
                    access = replace(access, url=f"http://127.0.0.1:{PORT}")
                argv = self._confined(argv, access, dict(more or {}), dict(shown or {}))
                environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
            else:
                environment = self._variables(access, dict(more or {}))
                environment["PATH"] = os.environ.get("PATH", "/usr/bin:/bin")
            async with asyncio.timeout(seconds):
                return await self._to_its_end(argv, environment, stdin)

    def remove(self) -> None:
        """Remove the workspace."""
        self.folder.remove()

    def _variables(self, access: ModelAccess | None, more: dict[str, str]) -> dict[str, str]:
        given = access.variables if access else {}
        logs = "/logs" if self.level == "bubblewrap" else str(self.folder.path / "logs")
        usual = {**variables(self.inside), "LOGS_DIR": logs, _MARK: self.folder.name}
        return {**usual, **given, **more}

    def _confined(
        self,
        argv: Sequence[str],
        access: ModelAccess | None,
        more: dict[str, str],
        shown: dict[str, str],
    ) -> list[str]:
        """The command under bubblewrap."""
        own = [str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix).resolve())]
        readable = (*self.readable, *own, str(Path(bridge.__file__).resolve()))
        job = Job(tuple(argv), {}, Limits(), readable)
        parts = ["bwrap", "--die-with-parent", "--new-session", *NAMESPACES]
        if os.getuid() != 0:
            parts += ["--unshare-user"]
        parts += ["--clearenv", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
        for path in job.binds:
            parts += ["--ro-bind", path, path]
        for path, points_to in job.links.items():
            parts += ["--symlink", points_to, path]
        parts += [
            "--bind",
            str(self.workspace),
            "/app",
            "--bind",
            str(self.folder.path / "logs"),
            "/logs",
        ]
        for inside, path in shown.items():
            parts += ["--ro-bind", path, inside]
        for name, value in self._variables(access, {"TMPDIR": "/tmp", **more}).items():
            parts += ["--setenv", name, value]
        if access is not None:
            parts += ["--bind", str(self._socket), SOCKET]
            argv = [sys.executable, "-I", bridge.__file__, SOCKET, str(PORT), *argv]
        return [*parts, "--chdir", "/app", "--cap-drop", "ALL", "--", *argv]

    @property
    def _socket(self) -> Path:
        return self.folder.path / "gateway.sock"

    async def _relay(self, access: ModelAccess) -> asyncio.Server:
        """Serve the socket file, as the gateway."""
        url = urlsplit(access.url)

        async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far = await asyncio.open_connection(url.hostname, url.port)
            except OSError:
                writer.transport.abort()
                return
            await bridge.join(reader, writer, far)

        return await asyncio.start_unix_server(taken, self._socket)

    async def _to_its_end(
        self, argv: Sequence[str], environment: dict[str, str], stdin: str
    ) -> Ended:
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                cwd=self.workspace,
            )
        )
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # asyncio can wait for ever for a process whose start was cut off: let it start, then end it.
            process = await starting
            await self._end(process)
            raise
        reading = asyncio.create_task(_output(process.stdout))
        try:
            await _feed(process.stdin, stdin)
            code = await process.wait()
        finally:
            await self._end(process)
            # Killed, it ends; what holds the pipe is gone as well, or is nobody's to wait for.
            await asyncio.wait({reading}, timeout=1.0)
            reading.cancel()
        return Ended(128 - code if code < 0 else code, _said(reading))

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Kill a program and all that it has begun, and wait until it is gone."""
        _kill_group(process.pid)
        if self.level == "bubblewrap":  # its namespace dies with it
            return
        mark = f"{_MARK}={self.folder.name}".encode()
        async with asyncio.timeout(_END_SECONDS):
            while found := [pid for pid in map(_pid, os.listdir("/proc")) if _has(pid, mark)]:
                for pid in found:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(_LOOK_SECONDS)


async def _feed(pipe: asyncio.StreamWriter | None, text: str) -> None:
    assert pipe is not None, "it was asked for"
    with contextlib.suppress(OSError):  # a program need not read
        pipe.write(text.encode())
        await pipe.drain()
    pipe.close()


async def _output(pipe: asyncio.StreamReader | None) -> bytes:
    """The first and the last bytes of what is written."""
    assert pipe is not None, "it was asked for"
    first, last = bytearray(), bytearray()
    cut = 0
    while part := await pipe.read(65536):
        room = MOST_OUTPUT // 2 - len(first)
        first += part[:room]
        last += part[room:]
        cut += max(0, len(last) - MOST_OUTPUT // 2)
        del last[: -MOST_OUTPUT // 2]
    between = f"\n[{cut:,} bytes more]\n".encode() if cut else b""
    return bytes(first) + between + bytes(last)


def _said(reading: asyncio.Task[bytes]) -> str:
    if not reading.done() or reading.cancelled():
        return ""
    return reading.result().decode(errors="replace")


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _pid(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _has(pid: int, mark: bytes) -> bool:
    """True if a process has the variable, and is not dead already; 0 is none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False
