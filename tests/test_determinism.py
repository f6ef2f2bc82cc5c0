"""The same samples, the same bits: learners in processes that share nothing, each with two threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import learner_process
import pytest

pytestmark = pytest.mark.process


def run(checkpoints: dict[str, Path], how: str) -> dict[str, list[list[str]]]:
    """What a fresh process with two threads computes; its hashes are seeded anew, too."""
    # Threads that wait do not spin: on busy cores spinning takes a hundred times as long.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, learner_process.__file__, how, *map(str, checkpoints.values())],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_processes_compute_the_same_losses_and_gradients_to_the_bit(checkpoints):
    first, second = (run(checkpoints, "deterministic") for _ in range(2))
    assert len(first) == 2, "a family in float32, the other in bfloat16"
    assert first == second
    for steps in first.values():
        assert len({tuple(step) for step in steps}) == 3, "the steps differ from one another"
