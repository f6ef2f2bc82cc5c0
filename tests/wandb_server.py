"""A stand-in for the W&B server on the loopback: takes what `wandb sync` sends, and keeps a run's history."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiohttp import web

# It answers; refuses every key with 401; takes requests and never answers; fails with 500.
Manner = Literal["answers", "refuses", "hangs", "fails"]


class WandbServer:
    """What it was sent. history: the rows of all runs, in order. summary: the last. asked: which operations.

    manner: how it treats requests from now on."""

    def __init__(self, manner: Manner = "answers") -> None:
        self.manner: Manner = manner
        self.ended = asyncio.Event()
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.runs: set[str] = set()
        self.asked: list[str] = []
        self.address = ""
        self.gone: Callable[[], Awaitable[None]]

    @web.middleware
    async def treat(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer as its manner is."""
        if self.manner == "answers":
            return await handler(request)
        self.asked.append(self.manner)
        if self.manner == "hangs":
            await self.ended.wait()
        return web.Response(status=401 if self.manner == "refuses" else 500, text=self.manner)

    async def graphql(self, request: web.Request) -> web.Response:
        """The few questions that have to be answered for a run to be uploaded."""
        body = await request.json()
        query, given = body["query"], body.get("variables") or {}
        self.asked.append(query.split("{")[0].strip())
        if "upsertBucket" in query:
            self.runs.add(given["name"])
            project = {
                "id": "p",
                "name": given.get("project"),
                "entity": {"id": "e", "name": "ada"},
            }
            bucket = {"id": "b", "name": given["name"], "displayName": given.get("displayName")}
            bucket |= {"sweepName": None, "config": "{}", "historyLineCount": 0, "project": project}
            return web.json_response(
                {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            )
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.address}/put/{n}"} for n in given["files"]]
            made = {"runID": "b", "uploadHeaders": [], "files": files}
            return web.json_response({"data": {"createRunFiles": made}})
        if "createArtifact(" in query:  # the file of a table, which it has already
            newest = {"latestArtifact": {"id": "a"}}
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": newest}
            return web.json_response({"data": {"createArtifact": {"artifact": artifact}}})
        viewer = {
            "id": "u",
            "entity": "ada",
            "username": "ada",
            "flags": "{}",
            "teams": {"edges": []},
        }
        return web.json_response({"data": {"viewer": viewer, "serverInfo": {"features": []}}})

    async def take(self, request: web.Request) -> web.Response:
        """Files, and the stream of history lines."""
        body = await request.read()
        self.asked.append(f"{request.method} {request.path}")
        if request.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            lines = files.get("wandb-history.jsonl", {}).get("content", [])
            self.history += map(json.loads, lines)
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.summary = json.loads(line)
        return web.json_response({})


@asynccontextmanager
async def wandb_server(manner: Manner = "answers") -> AsyncIterator[WandbServer]:
    """Serves until the block ends, or `gone()` is awaited."""
    server = WandbServer(manner)
    app = web.Application(client_max_size=2**26, middlewares=[server.treat])
    app.router.add_post("/graphql", server.graphql)
    app.router.add_route("*", "/{rest:.*}", server.take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server.gone = runner.cleanup
    try:
        yield server
    finally:
        server.ended.set()
        await runner.cleanup()
