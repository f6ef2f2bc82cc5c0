"""`ContainerWorkshop`: a workspace in a container of Docker's or Podman's, one for each episode.

The container's first process waits for the end of its standard input, which this process holds: whatever ends
us ends the container, and it is removed. Files go in and out as archives, so nobody's user numbers matter.
Without a network the agent's one way out is to the gateway. Leaves out a limit on disk.
"""

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from envs.agents import bridge
from envs.agents.access import ModelAccess
from envs.agents.archive import archive_folder
from envs.agents.container_engine import IMAGE_SECONDS, ask, built
from envs.agents.program import Process, begin, kill, kill_group, run_program
from envs.agents.relay import PORT, relay
from envs.agents.workshop import LOGS, TESTS, Ended, Plan, Verdict
from envs.episode_folder import EpisodeFolder
from envs.session import HostFault

_OURS = "/run/dorado"
_TRIES = 3
_ENGINES_OWN = ("PATH", "HOME", "DOCKER_", "CONTAINER", "XDG_", "LD_")
# Until a container that was killed has been removed.
_GONE_SECONDS = 20.0
_READY = b"ready\n"
# The first process waits for the end of its input. Processes that have lost their parent become its children:
# a Python lets the kernel forget them when they end, in a shell they stay as zombies that count as processes.
_PYTHON = (
    "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "print('ready', flush=True); sys.stdin.buffer.read()"
)
_HOLD = (
    f'command -v python3 >/dev/null && exec python3 -I -S -c "{_PYTHON}"; echo ready; read -r end'
)
# The engine waits for whoever holds the program's output, up to 10 s: what it left behind is killed before.
_ENDING = '"$@"; code=$?; kill -9 -1 2>/dev/null; exit $code'
# Kills all but the first process and itself; the kernel lets nobody in between. Then waits for their end.
_KILL = (
    "kill -9 -1 2>/dev/null; n=0; while [ $n -lt 500 ]; do n=$((n + 1)); set -- /proc/[0-9]*; "
    "[ $# -gt 2 ] || break; done; echo killed"
)


class ContainerWorkshop:
    """The workspace of one episode, in a container."""

    def __init__(self, plan: Plan) -> None:
        """plan: for the sandbox "docker" or "podman"."""
        self.plan = plan
        self.engine = plan.sandbox
        self.folder = EpisodeFolder()
        self.workspace = ""
        self._begun = False
        self._lifeline: Process | None = None

    @property
    def name(self) -> str:
        """The container's name."""
        return self.folder.name

    @property
    def python(self) -> str:
        return "python3"

    def at(self, script: Path) -> str:
        return str(script)

    async def open(self) -> None:
        container = self.plan.container
        image = container.image
        if self.plan.context:
            image = await built(self.engine, self.plan.context)
        self._begun = True
        os.chmod(self.folder.path, 0o755)
        self._lifeline = await self._begin(image)
        self.workspace = container.workspace or await self._image_workspace(image)
        made = f'mkdir -p "$0" {LOGS}/verifier {LOGS}/agent; chmod 777 "$0" {LOGS} {LOGS}/*'
        await self._must("exec", "-u", "0", self.name, "/bin/sh", "-c", made, self.workspace)

    async def _begin(self, image: str) -> Process:
        """Start the container. Raises HostFault with what the engine said."""
        container = self.plan.container
        parts = [self.engine, "run", "--interactive", "--rm", "--name", self.name]
        parts += ["--network", "none" if container.network == "gateway" else container.network]
        parts += ["--memory", container.memory, "--cpus", f"{container.cores:g}"]
        parts += ["--pids-limit", str(container.processes), "--security-opt", "label=disable"]
        parts += ["--volume", f"{self.folder.path}:{_OURS}"]
        ours = [str(Path(bridge.__file__).resolve()), *map(str, self.plan.scripts)]
        for path in dict.fromkeys((*self.plan.readable, *ours)):
            parts += ["--volume", f"{path}:{path}:ro"]
        parts += ["--entrypoint", "/bin/sh", image, "-c", _HOLD]
        try:
            process = await begin(parts, end=kill)
        except OSError as error:
            raise HostFault(f"{self.engine}: {error}") from None
        assert process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(IMAGE_SECONDS):  # the image may have to be fetched
                if await process.stdout.readline() == _READY:
                    return process
                said = (await process.stderr.read(4000)).decode(errors="replace").strip()
        except BaseException:
            kill_group(process.pid)
            raise
        raise HostFault(f"{self.engine} cannot start the image {image!r}: {said[-500:]}")

    async def _image_workspace(self, image: str) -> str:
        form = "{{.Config.WorkingDir}}"
        answer = await self._must("image", "inspect", "--format", form, image)
        found = answer.decode(errors="replace").strip()
        return found if found not in ("", "/") else "/app"

    async def put(self, archive: bytes) -> None:
        if not archive.strip(b"\0"):  # an empty one is none, says Podman
            return
        await self._must("cp", "-", f"{self.name}:{self.workspace}", stdin=archive)

    async def read(self, name: str, most: int = 1_000_000) -> str | None:
        return await self._text(str(PurePosixPath(self.workspace) / name), most)

    async def run(
        self,
        argv: Sequence[str],
        *,
        access: ModelAccess | None = None,
        variables: Mapping[str, str] | None = None,
        stdin: str = "",
        seconds: float | None = None,
    ) -> Ended:
        async with contextlib.AsyncExitStack() as held:
            if access is not None and self.plan.container.network == "gateway":
                socket = self.folder.path / "gateway.sock"
                socket.unlink(missing_ok=True)
                await held.enter_async_context(await relay(socket, access))
                os.chmod(socket, 0o777)
                access = replace(access, url=f"http://127.0.0.1:{PORT}")
                inside = (self.python, "-I", str(Path(bridge.__file__).resolve()))
                argv = [*inside, f"{_OURS}/{socket.name}", str(PORT), *argv]
            told = {**(access.variables if access else {}), "LOGS_DIR": LOGS, **(variables or {})}
            async with asyncio.timeout(seconds):
                return await self._executed(argv, told, stdin)

    async def judge(self, script: Path, variables: Mapping[str, str]) -> Verdict:
        folders = f"{TESTS} {LOGS}/verifier"
        made = f"rm -rf {folders}; mkdir -p {folders}; chmod 777 {folders}"
        await self._must("exec", "-u", "0", self.name, "/bin/sh", "-c", made)
        tests = archive_folder(script.parent)
        await self._must("cp", "-", f"{self.name}:{TESTS}", stdin=tests)
        found = 'command -v bash >/dev/null && exec bash "$0"; exec sh "$0"'
        argv = ["/bin/sh", "-c", found, f"{TESTS}/{script.name}"]
        ended = await self.run(argv, variables={"TEST_DIR": TESTS, **variables})
        left = [await self._text(f"{LOGS}/verifier/reward.{kind}") for kind in ("txt", "json")]
        return Verdict(ended, *left)

    async def remove(self) -> None:
        if not self._begun:
            return
        self._begun, name, lifeline = False, self.name, self._lifeline
        try:
            await ask(self.engine, "kill", name)
            if lifeline is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GONE_SECONDS):
                        await lifeline.wait()  # it ends when the container has been removed
            await ask(self.engine, "rm", "--force", name)
        finally:
            if lifeline is not None:
                kill_group(lifeline.pid)
                lifeline._transport.close()  # pyright: ignore
            self.folder.remove()

    async def _executed(
        self, argv: Sequence[str], variables: Mapping[str, str], stdin: str
    ) -> Ended:
        """Run a program inside. The values of its variables are not on the command line, which any user of
        this machine can read, but for those that the engine's own command would take for its own."""
        shown = {k: v for k, v in variables.items() if k.startswith(_ENGINES_OWN)}
        hidden = {k: v for k, v in variables.items() if k not in shown}
        given = (*hidden, *(f"{name}={value}" for name, value in shown.items()))
        names = [part for one in given for part in ("--env", one)]
        command = ["exec", "--interactive", "--workdir", self.workspace, *names, self.name]
        command += ["/bin/sh", "-c", _ENDING, "sh"]
        ended = await run_program(
            [self.engine, *command, *argv],
            environment={**os.environ, **hidden},
            folder=self.folder.path,
            stdin=stdin,
            end=self._end,
        )
        if ended.code:
            await self._alive()
        return ended

    async def _end(self, process: Process) -> None:
        """Kill all that runs inside but what holds the container, and the command that watched.

        Raises HostFault where the container is there, and they cannot be killed.
        """
        kill_group(process.pid)
        inside = ("exec", "-u", "0", self.name, "/bin/sh", "-c", _KILL)
        said = ""
        for more in range(_TRIES):
            _, killed, said = await ask(self.engine, *inside)
            if killed:
                return
            await self._alive()
            # Where the processes are all used up there is none for the command that kills.
            limit = self.plan.container.processes + 64 * (more + 1)
            await ask(self.engine, "update", "--pids-limit", str(limit), self.name)
        raise HostFault(f"{self.engine}: a container's processes cannot be killed: {said[-300:]}")

    async def _alive(self) -> None:
        """Raises HostFault where the container has ended, or its engine: an exit code then says nothing of
        a program."""
        code, running, said = await ask(
            self.engine, "inspect", "--format", "{{.State.Running}}", self.name
        )
        if code or running.strip() != b"true":
            raise HostFault(f"the container ended, or {self.engine} did: {said[-300:]}")

    async def _text(self, path: str, most: int = 1_000_000) -> str | None:
        """The first bytes of a file inside; None where there is none, or a link."""
        code, packed, _ = await ask(self.engine, "cp", f"{self.name}:{path}", "-")
        if code:
            await self._alive()
            return None
        return _first_file(packed, most)

    async def _must(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """One command of the engine. Raises HostFault where it fails."""
        code, output, said = await ask(self.engine, *arguments, stdin=stdin)
        if code:
            raise HostFault(f"{self.engine} {arguments[0]}: {said[-500:]}")
        return output


def _first_file(packed: bytes, most: int) -> str | None:
    """The first bytes of the file that an archive begins with; it may be cut off."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r") as archive:
            info = archive.next()
            file = archive.extractfile(info) if info is not None and info.isreg() else None
            return None if file is None else file.read(most).decode(errors="replace")
    except tarfile.TarError:
        return None
