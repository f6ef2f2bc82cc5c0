"""What a run in the sandbox costs, against a plain subprocess of the same program, at each level.

    python benchmarks/sandbox.py [--rounds 40]

The program is `python -S -c pass`. Plain and sandboxed runs take turns, so that what else the machine does
falls on both; figures are medians of one run at a time. `side by side` is how many runs end per second when
64 are asked for at once. Target: at the strongest level that works here at most 4 times a plain subprocess.
Exits with 1 where it is missed.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

from envs.sandbox.confinement import python_at
from envs.sandbox.level import ISOLATING, LevelName
from envs.sandbox.probe import obstacle
from envs.sandbox.sandbox import Sandbox

TARGET = 4.0
AT_ONCE = 64


async def plain(argv: list[str]) -> None:
    pipe = asyncio.subprocess.PIPE
    proc = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env={})
    await proc.communicate()


async def sandboxed(box: Sandbox, argv: list[str]) -> None:
    result = await box.run(argv)
    assert result.status == "ok", result


async def milliseconds(act: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await act()
    return 1000 * (time.perf_counter() - began)


async def measure(level: LevelName, rounds: int) -> float:
    """Print the figures of a level; its ratio."""
    box, argv = Sandbox(level=level), [python_at(level), "-S", "-c", "pass"]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        times[0].append(await milliseconds(lambda: plain(argv)))
        times[1].append(await milliseconds(lambda: sandboxed(box, argv)))
    bare, confined = median(times[0]), median(times[1])
    began = time.perf_counter()
    await asyncio.gather(*(sandboxed(box, argv) for _ in range(AT_ONCE)))
    rate = AT_ONCE / (time.perf_counter() - began)
    print(
        f"{level:<12} plain {bare:5.1f} ms  sandboxed {confined:5.1f} ms  ratio {confined / bare:4.1f}  "
        f"side by side {rate:4.0f}/s"
    )
    return confined / bare


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    ratios: list[float] = []
    for level in (*ISOLATING, "none"):
        if reason := await obstacle(level):
            print(f"{level:<12} not here: {reason}")
        else:
            ratios.append(await measure(level, rounds))
    print(f"target: at most {TARGET:g} at the first of them")
    return int(not ratios or ratios[0] > TARGET)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
