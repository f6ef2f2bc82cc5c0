"""The dashboard over a large run: how fast its pages open, and how much memory its process takes.

    python benchmarks/dashboard.py [--trajectories N] [--keep DIR] [--json FILE]

A run folder of 1,000 steps with 200 keys and 200,000 trajectories, written by what writes a run's
(`rl.record.run_folder`), then `dorado dashboard` over it as a process of its own. Measured:

    reading all texts once, for the text index
    the questions of the list, asked directly: every filter below in every order; every search below, its hits
    and their number
    pages by HTTP, up to the last byte: trajectories by link, the overview when nothing of it was read yet,
    the list by filter and by search, a group
    the memory of the process at its highest

Targets: overview 2 s, a trajectory 0.5 s, a filter 1 s, a search 1 s, 1 GB. Exits with 1 where one is missed.
Left out: what a browser takes to draw.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from envs.env import Task
from envs.message import Message, ToolCall
from rl.config import RunConfig
from rl.dashboard import trajectory_index
from rl.dashboard.pages.frame import run_address
from rl.dashboard.text_index import TextIndex
from rl.dashboard.trajectory_filter import ORDERS, TrajectoryFilter
from rl.record.run_folder import RunFolder, TrajectoryWriter
from rl.samples.group import GroupReport, GroupSpec, member_report
from rl.samples.samples import Dropped
from rollout.engine import VersionSpan
from rollout.trajectory import Phase, ScoredTrajectory, Trajectory, Turn

STEPS, KEYS, GROUP_SIZE = 1000, 200, 8
ENVS = tuple(f"env-{n}" for n in range(5))
PAGES = 20
TARGETS = {"overview": 2.0, "trajectory": 0.5, "filter": 1.0, "search": 1.0, "memory_gb": 1.0}
FILTERS = (
    TrajectoryFilter(),
    TrajectoryFilter(env=ENVS[1]),
    TrajectoryFilter(env=ENVS[1], stop="max_turns", outcome="sample"),
    TrajectoryFilter(reward_min=0.25, reward_max=0.75),
    TrajectoryFilter(version=500),
    TrajectoryFilter(fault="with"),
    TrajectoryFilter(tokens_min=10**6),
    TrajectoryFilter(page=500),
)


# A word of every trajectory, a rare one, a phrase, a word of one column, one beside a filter, none at all.
SEARCHES = (
    TrajectoryFilter(text="question"),
    TrajectoryFilter(text="zebra"),
    TrajectoryFilter(text='"what the policy wrote"'),
    TrajectoryFilter(text="add", within="tools"),
    TrajectoryFilter(text="failed", within="errors", order="-reward"),
    TrajectoryFilter(text="policy wrote", env=ENVS[1], stop="max_turns", order="tokens"),
    TrajectoryFilter(text="nowhere"),
)


def write_run(runs: Path, trajectories: int) -> dict[str, float]:
    """Write the run; what writing took per trajectory."""
    settings = {"name": "large", "runs_dir": str(runs), "steps": STEPS, "model": {"init": {}}}
    tables = [{"id": "calculator", "name": env} for env in ENVS]
    folder = RunFolder(RunConfig.model_validate({**settings, "env": tables}))
    draw = random.Random(0)
    for step in range(1, STEPS + 1):
        folder.metrics(step, {f"rollout/env-{n}/key": draw.random() for n in range(KEYS)})
    writer = TrajectoryWriter(folder.path, "controller-0")
    groups, in_index, start = trajectories // GROUP_SIZE, 0.0, time.perf_counter()
    for number in range(groups):
        report = _group(writer, draw, number, version=number * STEPS // groups)
        began = time.perf_counter()
        folder.index(report, "train")
        in_index += time.perf_counter() - began
    took = time.perf_counter() - start
    folder.close()
    return {
        "write_us": 1e6 * (took - in_index) / trajectories,
        "index_us": 1e6 * in_index / trajectories,
    }


def _group(writer: TrajectoryWriter, draw: random.Random, number: int, version: int) -> GroupReport:
    task = Task(ENVS[number % len(ENVS)], {"seed": number})
    name = f"g{number:06}"
    scored = [_scored(draw, f"{name}.{n}", name, task, version) for n in range(GROUP_SIZE)]
    members = tuple(member_report(one, *writer.write(one)) for one in scored)
    ids = tuple(one.id for one in members)
    dropped = (Dropped(ids, "filtered", "zero_variance"),) if draw.random() < 0.3 else ()
    spec = GroupSpec(name, task.env, task, ids, train=True)
    start = 1.7e9 + number
    return GroupReport(spec, members, () if dropped else ids, dropped, start, start + 9)


def _scored(draw: random.Random, id: str, group: str, task: Task, version: int) -> ScoredTrajectory:
    turns = []
    for _ in range(draw.randint(1, 4)):
        size = draw.randint(5, 40)
        turns.append(
            Turn(
                prompt_ids=tuple(draw.randrange(500) for _ in range(20)),
                completion_ids=tuple(draw.randrange(500) for _ in range(size)),
                rollout_logprobs=tuple(-draw.random() for _ in range(size)),
                versions=(VersionSpan(version, 0, size),),
                finish_reason="stop",
                engine="engine-0",
                text=_text(draw),
                calls=(ToolCall("add", {"a": "2", "b": "3"}),),
                observations=(Message("tool", "5", name="add"),),
            )
        )
    played = Trajectory(
        id=id,
        group=group,
        env=task.env,
        task=task,
        opening=(Message("user", "a question"),),
        turns=tuple(turns),
        stop_reason=draw.choice(("completed",) * 8 + ("max_turns", "env_fault")),
        env_rewards={"solved": 1.0},
        phases=(Phase("generate", 1.7e9, draw.random()), Phase("tool", 1.7e9, draw.random())),
    )
    if not played.judged:
        played = replace(played, fault="the environment failed: it was told to")
    reward = draw.choice((0.0, 1.0, draw.random()))
    return ScoredTrajectory(played, {"solved": reward}, reward)


def _text(draw: random.Random) -> str:
    """Some 40 words; one in a thousand texts has a rare one."""
    words = [f"w{int(20_000 * draw.random() ** 3)}" for _ in range(30)]
    rare = " zebra" if draw.random() < 0.001 else ""
    return f"what the policy wrote {' '.join(words)}{rare}"


def read_texts(folder: Path, cache: Path) -> TextIndex:
    """Read all texts of the run into an index in the cache."""
    texts = TextIndex(folder, cache)
    while not texts.grow(10.0):
        pass
    return texts


def search_questions(folder: Path, texts: Path) -> dict[str, float]:
    """The slowest search: its first page of hits, and their number with their rewards."""
    return {
        "search_hits": max(
            seconds(lambda a=a: trajectory_index.hits(folder, a, texts)) for a in SEARCHES
        ),
        "search_tally": max(
            seconds(lambda a=a: trajectory_index.tally(folder, a, texts)) for a in SEARCHES
        ),
    }


def questions(folder: Path) -> dict[str, float]:
    """The slowest answer of each kind, in seconds."""
    orders = [*ORDERS, *(f"-{order}" for order in ORDERS)]
    asked = [replace(one, order=order) for one in FILTERS for order in orders]
    slowest = {
        "hits": max(seconds(lambda one=one: trajectory_index.hits(folder, one)) for one in asked),
        "tally": max(seconds(lambda a=a: trajectory_index.tally(folder, a)) for a in FILTERS),
        "choices": seconds(lambda: trajectory_index.choices(folder)),
    }
    one = trajectory_index.hits(folder, FILTERS[-1])[0]
    slowest["next"] = max(
        seconds(lambda a=a: trajectory_index.beside(folder, a, one, forward=True)) for a in asked
    )
    return slowest


def seconds(act: Callable[[], object]) -> float:
    """Seconds that an act takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@contextmanager
def served(runs: Path, cache: Path) -> Iterator[tuple[httpx.Client, int]]:
    """The dashboard as a process: a client of it, and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rl", "dashboard", str(runs), "--port", str(port)]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache)}
    process = subprocess.Popen(command, cwd=root, env=environment)
    try:
        transport = httpx.HTTPTransport(retries=9)
        base = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=base, transport=transport, timeout=120) as client:
            client.get("/run/nothing").raise_for_status()
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def pages(client: httpx.Client, trajectories: int) -> dict[str, float]:
    """Seconds that each kind of page takes to open, the slowest; of the overview the first time."""
    draw = random.Random(1)
    groups = [draw.randrange(trajectories // GROUP_SIZE) for _ in range(PAGES)]
    views = ("messages", "logprob", "advantage", "ids")

    def opened(page: str, query: list[tuple[str, str]]) -> float:
        address = run_address("large", page, query)
        return seconds(lambda: client.get(address).raise_for_status())

    return {
        "trajectory": max(
            opened(f"trajectory/g{group:06}.{n % GROUP_SIZE}", [("view", views[n % 4])])
            for n, group in enumerate(groups)
        ),
        "overview": opened("", []),
        "overview_again": opened("", []),
        "filter": max(opened("trajectories", one.query) for one in FILTERS),
        "search": max(opened("trajectories", one.query) for one in SEARCHES),
        "group": max(opened(f"group/g{group:06}", []) for group in groups),
    }


def memory_gb(pid: int) -> float:
    """The most memory that a process has held (resident)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kib) * 1024 / 1e9


def measure(runs: Path, trajectories: int) -> dict[str, Any]:
    """Write the run if it is not there, and all figures."""
    figures: dict[str, Any] = {"trajectories": trajectories}
    folder = runs / "large"
    if not folder.is_dir():
        figures["writing"] = write_run(runs, trajectories)
    cache = runs / ".cache"
    started = time.perf_counter()
    texts = read_texts(folder, cache / "dorado" / "dashboard")
    figures["text_index"] = {
        "seconds": time.perf_counter() - started,
        "gb": texts.path.stat().st_size / 1e9,
    }
    figures["questions"] = questions(folder) | search_questions(folder, texts.path)
    with served(runs, cache) as (client, pid):
        figures["pages"] = pages(client, trajectories)
        figures["pages"]["memory_gb"] = memory_gb(pid)
    return figures


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trajectories", type=int, default=200_000)
    parser.add_argument(
        "--keep", type=Path, help="write the run into this folder, or take it from there"
    )
    parser.add_argument("--json", type=Path, help="write what was measured to this file, too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(asked.keep or Path(temporary), asked.trajectories)
    print(json.dumps(figures, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    missed = [name for name, most in TARGETS.items() if figures["pages"][name] > most]
    print(f"targets: {'met' if not missed else 'MISSED: ' + ', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
