"""256 right answers judged at once by `mathematics`, on busy cores, with one that hangs among them.

    python benchmarks/judgements.py [--answers N] [--busy N] [--seconds S] [--json FILE]

The run's own path: `reward.score.score` with a deadline of `--seconds` for each, all begun together. Beside
it `--busy` processes take all the CPU time that they get. One comparing process is stopped (SIGSTOP) in the
middle of its work: what it compares is a fault of the judge at its deadline, all others have the reward 1.
Exits with 1 where that is missed.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from envs.env import Task
from envs.message import Message
from reward.answer import mathematics
from reward.score import JudgeFault, score
from rollout.trajectory import Trajectory, Turn


def trajectory(number: int) -> Trajectory:
    """A right answer in another form than its reference."""
    turn = Turn((), (), (), (), "stop", "", f"So the answer is $({number}+x)(x-{number})$.")
    task = Task("sums", {"answer": f"x^2 - {number**2}"})
    opening = (Message("user", "Multiply out, or do not."),)
    return Trajectory(str(number), "g", "sums", task, opening, (turn,), "completed", {}, ())


async def judged(number: int, seconds: float) -> str:
    """The reward, or what the fault says."""
    try:
        found = await score(trajectory(number), [mathematics], {}, seconds=seconds)
    except JudgeFault as fault:
        return str(fault)
    return f"{found.reward:g}"


async def stop_one(begun: asyncio.Event) -> int:
    """Stop a comparing process that is at work; its id."""
    own = str(os.getpid())
    await begun.wait()
    while True:
        listed = subprocess.run(
            ["ps", "--ppid", own, "-o", "pid=,args="],
            capture_output=True,
            text=True,
            encoding="utf-8",
        ).stdout.splitlines()
        at_work = [int(line.split()[0]) for line in listed if "reward.comparing" in line]
        if at_work:
            os.kill(at_work[0], signal.SIGSTOP)
            return at_work[0]
        await asyncio.sleep(0.1)


async def measure(answers: int, seconds: float) -> dict[str, object]:
    """Judge them all."""
    begun, ends, first = time.perf_counter(), list[float](), asyncio.Event()

    async def one(number: int) -> str:
        found = await judged(number, seconds)
        ends.append(time.perf_counter() - begun)
        first.set()
        return found

    stopping = asyncio.create_task(stop_one(first))
    found = await asyncio.gather(*(one(n) for n in range(2, answers + 2)))
    await stopping
    return {
        "outcomes": dict(Counter(found)),
        "seconds_to_the_last_but_one": round(sorted(ends)[-2], 1),
        "seconds_to_the_last": round(max(ends), 1),
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    options.add_argument("--answers", type=int, default=256)
    options.add_argument("--busy", type=int, default=2)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(asked.busy)]
    try:
        figures = asyncio.run(measure(asked.answers, asked.seconds))
    finally:
        for process in load:
            process.kill()
    print(json.dumps(figures, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(figures), encoding="utf-8")
    outcomes = figures["outcomes"]
    assert isinstance(outcomes, dict)
    return int(outcomes.get("1", 0) < asked.answers - 1)


if __name__ == "__main__":
    sys.exit(main())
