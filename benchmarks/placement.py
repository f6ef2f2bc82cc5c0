"""One placement decision for 4,096 engines and 32,000 trajectories, on one core.

    python benchmarks/placement.py

Prints milliseconds (median and worst of 20 decisions), and the same as a ratio to sorting the same
trajectories once, which says what the machine is like.
"""

import random
import sys
import time
from collections.abc import Callable
from statistics import median

from rollout.placement import EngineState, InProgress, place

ENGINES, TRAJECTORIES, VERSIONS = 4096, 32_000, 4
TARGET_MS = 50


def fleet(seed: int) -> tuple[list[EngineState], list[InProgress]]:
    """A fleet in the middle of a run: older versions have fewer trajectories, some are misplaced."""
    rng = random.Random(seed)
    engines = [
        EngineState(f"e{i}", rng.choices(range(VERSIONS), (1, 2, 4, 8))[0], 16)
        for i in range(ENGINES)
    ]
    trajectories = [
        InProgress(
            f"t{i}",
            rng.choices(range(VERSIONS), (1, 3, 6, 12))[0],
            f"e{rng.randrange(ENGINES)}",
            rng.randrange(30_000),
        )
        for i in range(TRAJECTORIES)
    ]
    return engines, trajectories


def milliseconds(act: Callable[[], object]) -> float:
    """How long `act` takes."""
    start = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - start)


def settled(engines: list[EngineState], ones: list[InProgress]) -> list[InProgress]:
    """The same with every trajectory on an engine of its version, as one finds it in a run."""
    plan = place(engines, ones, {}, newest=VERSIONS - 1)
    target = {move.id: move.target for move in plan.requests}
    return [InProgress(t.id, t.version, target.get(t.id, t.engine), t.tokens) for t in ones]


def main() -> int:
    """Time decisions in which everything is misplaced, and in which little is."""
    met = True
    for title, prepare in (("all misplaced", lambda e, t: t), ("settled", settled)):
        times, sorts = [], []
        for seed in range(20):
            engines, ones = fleet(seed)
            ones = prepare(engines, ones)
            sorts.append(milliseconds(lambda ones=ones: sorted(ones, key=lambda t: t.tokens)))
            times.append(
                milliseconds(
                    lambda engines=engines, ones=ones: place(
                        engines,
                        ones,
                        {VERSIONS - 1: 2000},
                        newest=VERSIONS - 1,
                        slack=2,
                        expected_tokens=2400,
                    )
                )
            )
        ratio = median(times) / median(sorts)
        print(
            f"{title}: median {median(times):.1f} ms, worst {max(times):.1f} ms, {ratio:.1f} sorts"
        )
        met &= median(times) <= TARGET_MS
    print(f"target: at most {TARGET_MS} ms in the median: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
