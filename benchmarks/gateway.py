"""Measures what the gateway adds to a turn, and counts tokens that are not the engine's own.

    python benchmarks/gateway.py [--sessions 1000] [--turns 4] [--episodes 1000] [--json FILE]

A `Gateway` in this process, with the real renderer of a tiny policy and an engine that answers at once, or
after `--engine-seconds`. Clients in a process of their own speak HTTP to it, each as one session with a key
of its own: a question, a tool call, its result, and so on; one in ten rewrites its history once. Three parts:

- alone: one session, one request at a time: milliseconds of a request as the client has them (there and
  back, parsing and rendering), p50 and p99;
- many: all sessions at once; requests per second, p50 and p99 (the engine's seconds are in them), and the
  memory that this process grew by per session;
- audit: the engine keeps its own log of prompts and completions; the samples of all episodes are compared
  with it, token by token and log-prob by log-prob. Differences: has to be 0, or the exit code is 1.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from envs.env import Task
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rl.samples.samples import by_segment, train_sample
from rollout.config import EpisodeConfig
from rollout.engine import Completion, Request, VersionSpan
from rollout.gateway.server import Gateway
from rollout.gateway.talk import Talk
from rollout.renderer import Renderer
from rollout.trajectory import Trajectory

CALL = (
    "<longcat_tool_call>add<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>{a}</longcat_arg_value>"
    "<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>2</longcat_arg_value></longcat_tool_call>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "a plus b",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


@dataclass
class LoggingEngine:
    """Writes a call, and keeps its own log: what it was asked with, and what it wrote."""

    renderer: Renderer
    seconds: float
    log: dict[tuple[int, ...], list[Completion]] = field(default_factory=dict[Any, Any])
    count: int = 0

    async def generate(self, request: Request) -> Completion:
        await asyncio.sleep(self.seconds)
        self.count += 1
        text = CALL.format(a=self.count % 97) + self.renderer.text([self.renderer.eos_ids[0]])
        ids = tuple(self.renderer.tokenizer.encode(text, add_special_tokens=False))
        rng = random.Random(self.count)
        completion = Completion(
            ids, tuple(-rng.random() for _ in ids), (VersionSpan(0, 0, len(ids)),), "stop"
        )
        self.log.setdefault(request.prompt_ids, []).append(completion)
        return completion


async def converse(
    http: aiohttp.ClientSession, url: str, key: str, turns: int, number: int
) -> list[float]:
    """One session's requests, one after the other; the seconds of each."""
    rng, found = random.Random(number), []
    messages: list[Any] = [{"role": "user", "content": f"task {number}: {rng.random()}"}]
    for turn in range(turns):
        body = {"model": "policy", "messages": messages, "tools": [TOOL]}
        headers = {"Authorization": f"Bearer {key}"}
        start = time.perf_counter()
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as got:
            answer = await got.json()
            got.raise_for_status()
        found.append(time.perf_counter() - start)
        said = answer["choices"][0]["message"]
        messages.append(said)
        if number % 10 == 0 and turn == 1:
            messages[1:] = [{"role": "user", "content": "in short: nothing yet"}]
            continue
        result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "7"}
        messages.append(result)
    return found


def clients(
    url: str, keys: Sequence[str], turns: int, at_once: int, out: "multiprocessing.SimpleQueue[Any]"
) -> None:
    """Play all sessions, `at_once` at a time, in this process."""

    async def play() -> list[float]:
        room = asyncio.Semaphore(at_once)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:

            async def one(number: int, key: str) -> list[float]:
                async with room:
                    return await converse(http, url, key, turns, number)

            seconds = await asyncio.gather(*(one(i, key) for i, key in enumerate(keys)))
            return [one for each in seconds for one in each]

    start = time.perf_counter()
    seconds = asyncio.run(play())
    out.put((seconds, time.perf_counter() - start))


async def part(
    renderer: Renderer, sessions: int, turns: int, at_once: int, engine_seconds: float
) -> tuple[list[float], float, float, list[Talk], LoggingEngine]:
    """Play sessions against a gateway of their own. Returns seconds of each request and of all, bytes per
    session, what was said, and the engine's log."""
    engine, gateway = LoggingEngine(renderer, engine_seconds), Gateway()
    config = EpisodeConfig(max_turns=turns + 1, max_completion_tokens=128, max_tokens=8192)
    before = psutil.Process().memory_info().rss
    talks = [
        Talk(f"g{i}", "policy", renderer, config, engine.generate, None) for i in range(sessions)
    ]
    accesses = [await gateway.open(talk) for talk in talks]
    context = multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    keys = [one.key for one in accesses]
    child = context.Process(target=clients, args=(accesses[0].url, keys, turns, at_once, out))
    child.start()
    seconds, whole = await asyncio.to_thread(out.get)
    grown = (psutil.Process().memory_info().rss - before) / sessions
    child.join()
    for talk in talks:
        await gateway.shut(talk)
    await gateway.stop()
    return seconds, whole, grown, talks, engine


def differences(talks: Sequence[Talk], engine: LoggingEngine) -> tuple[int, int, int]:
    """Trained tokens that are not the engine's own, in their place; how many are trained on; branches."""
    wrong = trained = branches = 0
    for talk in talks:
        turns, forks = talk.segments()
        branches += len(forks)
        whole = Trajectory(
            talk.id, talk.id, "agent", Task("agent", {}), talk.opening, turns, "completed", {}, ()
        )
        for sample in by_segment(train_sample(whole, 1.0), whole):
            at, known = 0, sample.token_ids
            while at < len(known):
                if not sample.loss_mask[at]:
                    at += 1
                    continue
                wrote = engine.log.get(known[:at], [])
                found = [
                    c
                    for c in wrote
                    if c.token_ids == known[at : at + len(c.token_ids)]
                    and c.logprobs == sample.rollout_logprobs[at : at + len(c.token_ids)]
                ]
                length = len(found[0].token_ids) if found else 1
                wrong += not found
                trained += length
                at += length
    written = sum(len(c.token_ids) for each in engine.log.values() for c in each)
    return wrong + abs(written - trained), trained, branches


def quantile(seconds: Sequence[float], share: float) -> float:
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def policy() -> Renderer:
    """The renderer of a tiny policy, whose making has an event loop of its own."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.model_validate(
            {"name": "gateway", "runs_dir": folder, "env": [{"id": "calculator"}]}
            | {"model": {"init": {"preset": "tiny"}}, "sft": None}
        )
        checkpoint, _ = first_checkpoint(config, lambda *_: None)
        return Renderer(checkpoint, "longcat")


async def measure(c: argparse.Namespace, renderer: Renderer) -> dict[str, float]:
    """All parts. Returns the figures by name."""
    alone, *_ = await part(renderer, 50, c.turns, 1, 0.0)
    many, whole, grown, talks, engine = await part(
        renderer, c.sessions, c.turns, c.sessions, c.engine_seconds
    )
    wrong, trained, branches = differences(talks, engine)
    if c.episodes > c.sessions:
        *_, more, log = await part(renderer, c.episodes - c.sessions, c.turns, 64, 0.0)
        wrong, trained, branches = (
            a + b for a, b in zip((wrong, trained, branches), differences(more, log), strict=True)
        )
    return {
        "alone p50 ms": quantile(alone, 0.5),
        "alone p99 ms": quantile(alone, 0.99),
        "sessions at once": c.sessions,
        "requests": len(many),
        "requests/s": len(many) / whole,
        "many p50 ms": quantile(many, 0.5),
        "many p99 ms": quantile(many, 0.99),
        "KiB per session": grown / 1024,
        "audited episodes": max(c.sessions, c.episodes),
        "trained tokens": trained,
        "branches": branches,
        "differences": wrong,
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--engine-seconds", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    c = parser.parse_args()
    found = asyncio.run(measure(c, policy()))
    for name, value in found.items():
        print(f"{name:>18}  {value:,.4g}" if isinstance(value, float) else f"{name:>18}  {value:,}")
    if c.json:
        c.json.write_text(json.dumps(found), encoding="utf-8")
    sys.exit(found["differences"] > 0)


if __name__ == "__main__":
    main()
