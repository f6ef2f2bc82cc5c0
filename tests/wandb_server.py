"""A stand-in for the W&B server on the loopback: takes what `wandb sync` sends, and keeps a run's history."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class WandbServer:
    """What it was sent. history: the rows of all runs, in order. asked: for which operations."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.runs: set[str] = set()
        self.asked: list[str] = []
        self.address = ""

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
        return web.json_response({})


@asynccontextmanager
async def wandb_server() -> AsyncIterator[WandbServer]:
    """Serves until the block ends."""
    server = WandbServer()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/graphql", server.graphql)
    app.router.add_route("*", "/{rest:.*}", server.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
