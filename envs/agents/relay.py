"""The way from a world without a network to the policy: a socket file that is served as the gateway.

Inside, `bridge` takes a port to that file.
"""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from envs.agents import bridge
from envs.agents.access import ModelAccess

# The port inside, one that an agent's own servers do not want, and the socket file as programs see it.
PORT = 47113
SOCKET = "/run/gateway.sock"


async def relay(socket: Path, access: ModelAccess) -> asyncio.Server:
    """Serve the socket file, as the gateway."""
    url = urlsplit(access.url)

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await asyncio.open_connection(url.hostname, url.port)
        except OSError:
            writer.transport.abort()
            return
        await bridge.join(reader, writer, far)

    return await asyncio.start_unix_server(taken, socket)
