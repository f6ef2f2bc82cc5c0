"""One program from start to certain end: it is fed, its output is kept up to a limit, all of it is ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from envs.agents.workshop import Ended

# Bytes of output that are kept: the first and the last of them.
MOST_OUTPUT = 100_000
Process = asyncio.subprocess.Process


async def run_program(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    stdin: str,
    end: Callable[[Process], Awaitable[None]],
) -> Ended:
    """Run it in a session of its own. `end` is awaited whatever happens, and kills what still runs of it.

    Raises OSError where it cannot begin.
    """
    errors = asyncio.subprocess.STDOUT
    process = await begin(argv, end=end, errors=errors, environment=environment, folder=folder)
    reading = asyncio.create_task(_output(process.stdout))
    try:
        await feed(process.stdin, stdin.encode())
        code = await process.wait()
    finally:
        await end(process)
        # Killed, it ends; what holds the pipe is gone as well, or is nobody's to wait for.
        await asyncio.wait({reading}, timeout=1.0)
        reading.cancel()
    return Ended(128 - code if code < 0 else code, _said(reading))


async def begin(
    argv: Sequence[str],
    *,
    end: Callable[[Process], Awaitable[None]],
    errors: int = asyncio.subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Process:
    """Start a program in a session of its own, with pipes. `end` is awaited where the start is cut off.

    Raises OSError where it cannot begin.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env=environment,
            cwd=folder,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # asyncio can wait for ever for a process whose start was cut off: let it start, then end it.
        await end(await starting)
        raise


async def kill(process: Process) -> None:
    """Kill what a program has in its group; an `end` for one that has begun nothing elsewhere."""
    kill_group(process.pid)


def kill_group(leader: int) -> None:
    """Kill a session's processes, as far as they are still in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


async def feed(pipe: asyncio.StreamWriter | None, text: bytes) -> None:
    """Write a program's whole input and close it."""
    assert pipe is not None, "it was asked for"
    with contextlib.suppress(OSError):  # a program need not read
        pipe.write(text)
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
