"""Times the learner's step with and without prefixes that are computed once, in turns, on random groups.

    python benchmarks/sharing.py [--preset tiny] [--turns 3] [--json]

Members of a group have the prompt in common and nothing else, so what is saved is the least that a group
saves: members whose completions begin alike save more.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

# Groups, members, tokens of the prompt, tokens of a completion.
SHAPES = ((8, 8, 48, 48), (4, 8, 256, 64), (4, 8, 64, 256), (2, 16, 512, 64))
VOCABULARY = 400


def batch(groups: int, members: int, prompt: int, completion: int) -> list[TrainSample]:
    rng = random.Random(0)
    made: list[TrainSample] = []
    for group in range(groups):
        common = [rng.randrange(VOCABULARY) for _ in range(prompt)]
        for member in range(members):
            tokens = (*common, *(rng.randrange(VOCABULARY) for _ in range(completion)))
            mask = (False,) * prompt + (True,) * completion
            advantages = tuple(0.5 - member % 2 if m else 0.0 for m in mask)
            logprobs, versions = (-6.0,) * len(mask), tuple(0 if m else -1 for m in mask)
            id = f"{group}.{member}"
            made.append(TrainSample(id, "", tokens, mask, logprobs, advantages, versions))
    return made


def measure(folder: Path, shape: tuple[int, int, int, int], turns: int) -> dict[str, object]:
    """Medians of the seconds of a step, and of the ratio of neighbours."""
    samples = batch(*shape)
    config = LearnerConfig(
        micro_batch_tokens=4096,
        threads=1,
        loss=LossConfig(kind="longcat", behaviour="engine", max_completion_tokens=256),
        optim=OptimConfig(lr=1e-4),
    )
    seconds: dict[bool, list[float]] = {True: [], False: []}
    computed: dict[bool, float] = {}
    learners = {}
    for sharing in (False, True):
        learners[sharing] = Learner(folder, config, temperature=1.0, keep_versions=0)
        learners[sharing].passes.sharing = sharing
        computed[sharing] = learners[sharing].step(samples).metrics["learner/computed_tokens"]
    for _ in range(turns):
        for sharing, learner in learners.items():
            before = time.perf_counter()
            learner.step(samples)
            seconds[sharing].append(time.perf_counter() - before)
    ratios = [a / b for a, b in zip(seconds[False], seconds[True], strict=True)]
    return {
        "shape": shape,
        "computed": computed[True] / computed[False],
        "apart": statistics.median(seconds[False]),
        "shared": statistics.median(seconds[True]),
        "speedup": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the learner with shared prefixes.")
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    text = [" ".join(str(n) for n in range(900))] * 20
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "policy"
        init_checkpoint(
            checkpoint, family="longcat_flash", preset=arguments.preset, corpus=text, seed=0
        )
        for shape in SHAPES:
            found = measure(checkpoint, shape, arguments.turns)
            if arguments.json:
                print(json.dumps(found))
                continue
            groups, members, prompt, completion = shape
            print(
                f"{groups} groups of {members}, {prompt} + {completion} tokens: computed "
                f"{found['computed']:.2f}, {found['apart']:.2f} s -> {found['shared']:.2f} s a step, "
                f"{found['speedup']:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
