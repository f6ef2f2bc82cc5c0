"""One confined process from its start to its certain end: fed, read up to a limit, watched, killed.

Consumes a command that confines itself (`bubblewrap`, `launch`). Produces an `Ended`. Waits for the process;
unblocked by its end, by a limit it passes, by the clock, or by cancellation, and in each case returns only
when nothing of it runs any more.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass

from envs.sandbox.limits import Limits
from envs.sandbox.result import Status
from envs.sandbox.usage import usage_of

_WATCH_SECONDS = 0.1
# How long a killed sandbox may take to be gone before its process group is killed as well.
_END_SECONDS = 5.0
_HEAR_SECONDS = 0.001


class Passed(Exception):
    """A limit was passed: the status that follows, and the sentence."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status: Status = status


@dataclass(frozen=True)
class Command:
    """A process to start. fds are handed on to it; status_fd and files_fd are the ends that we read.

    own_world: its end is that of everything in it. directory: where its files lie on the host, where the
    disk limit has to be watched; watch_processes: whether the number of processes has to be, too.
    """

    argv: Sequence[str]
    fds: tuple[int, ...]
    status_fd: int
    files_fd: int | None
    own_world: bool
    directory: str | None = None
    watch_processes: bool = False


@dataclass(frozen=True)
class Ended:
    """How it ended: `passed` names the limit, `error` what failed before the program began."""

    stdout: bytes
    stderr: bytes
    files: bytes
    seconds: float
    passed: Passed | None
    exit_code: int | None
    error: str


class _Facts:
    """Facts that the confining process reports on its status pipe (`launch`, and bubblewrap's own format)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = b""

    def read(self) -> dict[str, object]:
        os.set_blocking(self.fd, False)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.fd, 65536):
                self.text += part
        facts: dict[str, object] = {}
        for line in self.text.splitlines():
            with contextlib.suppress(ValueError):
                facts = {**json.loads(line), **facts}
        return facts


async def run_process(command: Command, limits: Limits, stdin: bytes) -> Ended:
    """Run it to its end; closes `command.fds`. Raises OSError where it cannot be started."""
    began = time.monotonic()
    proc = await _start(command, stdin)
    facts = _Facts(command.status_fd)
    texts = (bytearray(), bytearray(), bytearray())
    acts = [asyncio.create_task(act) for act in _acts(proc, command, limits, stdin, texts)]
    watcher = asyncio.create_task(_watch(proc.pid, facts, command, limits))
    everything = asyncio.gather(*acts)
    passed: Passed | None = None
    try:
        done, _ = await asyncio.wait(
            {everything, watcher}, timeout=limits.wall_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            passed = Passed("timeout", f"no end within {limits.wall_seconds:g} s")
        for one in done:
            if isinstance(error := one.exception(), Passed):
                passed = error
            elif error is not None:
                raise error
    finally:
        for task in (*acts, watcher):
            task.cancel()
        await _to_its_end(_end(proc, facts, command))
        await _to_its_end(asyncio.wait({everything, *acts, watcher}))
        if not everything.cancelled():
            everything.exception()  # seen, so that nobody logs it
        # Also where the pipes are still held, as a program that got away at level "none" may do.
        proc._transport.close()  # pyright: ignore
    told = facts.read()
    code = told.get("exit-code")
    stdout, stderr, files = (bytes(text) for text in texts)
    return Ended(
        stdout=stdout,
        stderr=stderr,
        files=files,
        seconds=time.monotonic() - began,
        passed=passed,
        exit_code=code if isinstance(code, int) else None,
        error=str(told.get("error", "")),
    )


async def _start(command: Command, stdin: bytes) -> asyncio.subprocess.Process:
    """Start the process, in a session of its own; closes `command.fds`. Raises OSError."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=command.fds,
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            cwd="/",
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio can wait for ever for a process whose start was cut off: let it start, then end it.
        await _to_its_end(_end_started(starting, command))
        raise
    finally:
        for fd in command.fds:  # as long as we hold them the pipes do not end
            os.close(fd)


def _acts(
    proc: asyncio.subprocess.Process,
    command: Command,
    limits: Limits,
    stdin: bytes,
    texts: Sequence[bytearray],
) -> Iterator[Coroutine[object, object, object]]:
    """Yield the acts that have to end when the process does."""
    assert proc.stdout is not None and proc.stderr is not None
    most = limits.output_bytes
    yield _drain(proc.stdout, texts[0], most, "stdout")
    yield _drain(proc.stderr, texts[1], most, "stderr")
    yield proc.wait()
    if proc.stdin is not None:
        yield _feed(proc.stdin, stdin)
    if command.files_fd is not None:
        # base64 and names; the files themselves are bounded where they are collected
        yield _drain_fd(command.files_fd, texts[2], 2 * limits.disk_bytes + 65536)


async def _drain(stream: asyncio.StreamReader, into: bytearray, most: int, what: str) -> None:
    while chunk := await stream.read(65536):
        room = most - len(into)
        into += chunk[:room]
        if len(chunk) > room:
            raise Passed("output", f"more than {most} bytes on {what}")


async def _drain_fd(fd: int, into: bytearray, most: int) -> None:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.dup(fd), "rb", buffering=0)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        await _drain(reader, into, most, "the files asked for")
    finally:
        transport.close()


async def _feed(stream: asyncio.StreamWriter, text: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(text)
        await stream.drain()
    stream.close()


async def _watch(pid: int, facts: _Facts, command: Command, limits: Limits) -> None:
    """Look at what no limit of the kernel covers. Unblocked by the end of the run, which cancels it."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        spared = facts.read().get("child-pid") if command.own_world else None
        used = await asyncio.to_thread(
            usage_of,
            pid,
            spared if isinstance(spared, int) else pid,
            command.directory,
            limits.file_bytes,
        )
        if used.memory_bytes > limits.memory_bytes:
            raise Passed("memory", f"all processes together above {limits.memory_bytes} bytes")
        if used.disk_bytes > limits.disk_bytes:
            raise Passed("killed", f"files together above {limits.disk_bytes} bytes")
        if command.watch_processes and used.processes > limits.processes:
            raise Passed("killed", f"more than {limits.processes} processes")


async def _to_its_end(act: Coroutine[object, object, object]) -> None:
    """Wait for an act however often we are cancelled meanwhile; only then be cancelled."""
    task = asyncio.ensure_future(act)
    cut_off: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cut_off = error
    task.result()
    if cut_off is not None:
        raise cut_off


async def _end_started(
    starting: asyncio.Future[asyncio.subprocess.Process], command: Command
) -> None:
    try:
        proc = await starting
    except OSError:
        return  # it never was
    await _end(proc, _Facts(command.status_fd), command)
    proc._transport.close()  # pyright: ignore


async def _end(proc: asyncio.subprocess.Process, facts: _Facts, command: Command) -> None:
    """Kill what still runs and wait until it is gone."""
    if proc.returncode is None:
        await _kill(proc, facts.read().get("child-pid"), command)
    first = facts.read().get("child-pid")  # it may have been told since
    if command.own_world and isinstance(first, int):
        await _world_end(first)


async def _world_end(first: int) -> None:
    """End a world's first process, which takes the rest along: bubblewrap itself ends before it does.

    One that was still building its world goes on without bubblewrap, or waits for it without end.
    """
    try:
        fd = os.pidfd_open(first)
    except ProcessLookupError:
        return
    try:
        async with asyncio.timeout(_END_SECONDS):
            if _is_first(first):  # else the number is somebody else's by now
                _signal(first, signal.SIGKILL)
                await _readable(fd)
    except TimeoutError:
        pass  # it was killed, and the kernel takes its time
    finally:
        os.close(fd)


async def _kill(proc: asyncio.subprocess.Process, first: object, command: Command) -> None:
    if not command.own_world:
        _signal(proc.pid, signal.SIGTERM)
    elif isinstance(first, int) and _parent(first) == proc.pid:
        # A namespace's first process takes everything in it along before it can be waited for.
        _signal(first, signal.SIGKILL)
    else:
        # A first process that it has not told of yet is in its group until it has.
        _kill_group(proc.pid)
    try:
        async with asyncio.timeout(_END_SECONDS):
            await _exit(proc)
    except TimeoutError:
        _kill_group(proc.pid)
        await _exit(proc)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


async def _exit(proc: asyncio.subprocess.Process) -> None:
    """Wait for its exit alone: `proc.wait()` waits for its pipes as well, which nobody reads any more."""
    if proc.returncode is not None:
        return
    try:
        fd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return
    try:
        await _readable(fd)
    finally:
        os.close(fd)
    # Whoever closes the transport before asyncio has heard of it takes the exit code away from it.
    while proc.returncode is None:
        await asyncio.sleep(_HEAR_SECONDS)


async def _readable(pidfd: int) -> None:
    """Wait for the end of a process."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_first(pid: int) -> bool:
    """True if the process is the first one of a world within ours."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            numbers = next(line for line in file if line.startswith(b"NSpid:")).split()[1:]
    except (OSError, StopIteration):
        return False
    return len(numbers) > 1 and numbers[-1] == b"1"


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None
