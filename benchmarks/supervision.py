"""Tool calls through the supervision: real Ray hosts, real sessions, against a call in process.

    python benchmarks/supervision.py [--hosts N] [--sessions N] [--json FILE]

This process stands where a rollout controller stands: `HostPool` and `HostSession` over environment hosts
in Ray actors, the environment `calculator`. Beside the hosts nothing runs; no policy, so every millisecond is
the supervision's. Figures:

    in process   `EnvSession.step` without a host: what a tool call costs by itself
    paced        so many calls per second are begun, evenly; the time from when a call was due to its result
    most         every session calls again as soon as it has its answer: calls per second

Overhead of a call: its time when paced, less the median in process. Target: 2,000 calls/s on 2 cores,
overhead p99 at most 5 ms at that rate. Exits with 1 where it is missed.
"""

import argparse
import asyncio
import gc
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import ray

from envs.env import Task
from envs.message import ToolCall
from envs.session import Deadlines, EnvSession
from rl.actors.actor_method import Handle
from rl.actors.env_host import EnvHost
from rl.actors.host_pool import HostPool, HostSession
from rl.cluster import MAX_CALLS
from rl.env_table import EnvTable

TARGET_RATE, TARGET_MS = 2_000.0, 5.0
TABLE = EnvTable(id="calculator")
CALLS = (ToolCall("add", {"a": 2, "b": 40}),)
SECONDS = 10.0


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them is below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def in_process(task: Task) -> list[float]:
    """Milliseconds of calls of a session without a host."""
    session = EnvSession(TABLE.make(), Deadlines())
    await session.open(task)
    times: list[float] = []
    for _ in range(5_000):
        start = time.perf_counter()
        await session.step("", CALLS)
        times.append(1e3 * (time.perf_counter() - start))
    return times


async def paced(sessions: list[HostSession], rate: float, seconds: float) -> list[float]:
    """Milliseconds of calls from when each was due, begun at a rate per second."""
    times: list[float] = []
    calls: set[asyncio.Task[None]] = set()

    async def call(session: HostSession, due: float) -> None:
        await session.step("", CALLS)
        times.append(1e3 * (time.perf_counter() - due))

    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        calls.add(task := asyncio.create_task(call(sessions[number % len(sessions)], due)))
        task.add_done_callback(calls.discard)
    await asyncio.gather(*calls)
    return times


async def most(sessions: list[HostSession], seconds: float) -> float:
    """Calls per second when every session calls again at once."""
    done, end = 0, time.perf_counter() + seconds

    async def call(session: HostSession) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await session.step("", CALLS)
            done += 1

    await asyncio.gather(*map(call, sessions))
    return done / seconds


async def measure(hosts: int, sessions: int, folder: str) -> dict[str, Any]:
    """Start the hosts, open the sessions, and take every figure."""
    host = ray.remote(EnvHost).options(num_cpus=0, max_concurrency=MAX_CALLS)
    handles = [host.remote((TABLE,), f"{folder}/host-{n}.log") for n in range(hosts)]
    pool = HostPool(cast(list[Handle[EnvHost]], handles))
    task = next(TABLE.make().tasks("train", 0))
    opened = [HostSession(pool, f"s{n}", TABLE) for n in range(sessions)]
    await asyncio.gather(*(session.open(task) for session in opened))
    gc.collect()
    gc.freeze()  # as a controller does
    alone = await in_process(task)
    await paced(opened, TARGET_RATE, 2.0)
    times = await paced(opened, TARGET_RATE, SECONDS)
    base = quantile(alone, 0.5)
    figures = {
        "hosts": hosts,
        "sessions": sessions,
        "in_process_ms": {"p50": base, "p99": quantile(alone, 0.99)},
        "calls_per_second": TARGET_RATE,
        "overhead_ms": {f"p{q:g}": quantile(times, q / 100) - base for q in (50, 95, 99, 100)},
        "most_calls_per_second": await most(opened, SECONDS),
    }
    for session in opened:
        await session.close()
    return figures


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--sessions", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    asked = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
        _node_ip_address="127.0.0.1",
        logging_level=logging.ERROR,
    )
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(asked.hosts, asked.sessions, folder))
    ray.shutdown()
    print(json.dumps(figures, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    met = (
        figures["overhead_ms"]["p99"] <= TARGET_MS
        and figures["most_calls_per_second"] >= TARGET_RATE
    )
    print(f"target: {TARGET_RATE:,.0f} calls/s, p99 {TARGET_MS:g} ms: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
