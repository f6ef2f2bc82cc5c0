"""Calculations of one to three steps, for training from a pool that comes again (`choice_training.py`)."""

import itertools
import random
from collections.abc import Iterator

from pydantic import Field

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Split, Task
from envs.message import JsonObject


class MixedConfig(CalculatorConfig):
    """pool: so many tasks are trained on, again and again; 0: there is no end of them."""

    pool: int = Field(default=0, ge=0)


class MixedCalculator(Calculator):
    """A calculation of one, two or three steps; the fewer, the easier."""

    name = "mixed_calculator"
    config_type = MixedConfig
    difficulties = 1

    def sample(self, rng: random.Random) -> JsonObject:
        plain = self.config.model_copy(update={"difficulty": rng.choice((1, 1, 2, 3))})
        return Calculator(plain).sample(rng)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        assert isinstance(self.config, MixedConfig)
        if split == "heldout" or not self.config.pool:
            yield from super().tasks(split, seed)
            return
        # The same pool for every seed, each time in another order.
        pool = list(itertools.islice(super().tasks("train", 0), self.config.pool))
        rng = random.Random(seed)
        while True:
            rng.shuffle(pool)
            yield from pool
