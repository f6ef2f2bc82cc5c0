"""Runs a program in a world without a network, and takes what it asks at one port to a socket file.

    python bridge.py SOCKET PORT PROGRAM ARGUMENT…

Behind the socket file is the gateway, and nothing else. Ends with the program, with its code. Runs inside the
sandbox, by itself: imports none of ours.
"""

import asyncio
import sys


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Carry bytes one way until that way ends."""
    try:
        while part := await source.read(65536):
            target.write(part)
            await target.drain()
        target.write_eof()
    except OSError:
        target.transport.abort()


async def join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    """Carry bytes both ways between two connections until both ways have ended."""
    try:
        await asyncio.gather(copy(reader, far[1]), copy(far[0], writer))
    finally:
        for one in (writer, far[1]):
            one.close()


async def main(path: str, port: int, argv: list[str]) -> int:
    """Serve until the program ends. Returns its exit code."""

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await asyncio.open_unix_connection(path)
        except OSError:
            writer.transport.abort()
            return
        await join(reader, writer, far)

    server = await asyncio.start_server(taken, "127.0.0.1", port, backlog=256)
    async with server:
        program = await asyncio.create_subprocess_exec(*argv)
        code = await program.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
