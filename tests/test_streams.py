"""Task streams: the same for the same seed, one per environment and difficulty, and never at their end."""

import random
from typing import Any, ClassVar

import pytest
from fakes import Counting
from pydantic import Field

from envs.env import Env, EnvConfig
from rl.config import EnvTable
from rl.tasks.streams import OutOfTasks, TaskStreams


class GradedConfig(EnvConfig):
    difficulty: int = Field(default=2, ge=1, le=3)


class Graded(Env):
    """Tasks that say how difficult they are."""

    name = "graded"
    config_type = GradedConfig
    difficulties: ClassVar[int] = 3
    config: GradedConfig

    def sample(self, rng: random.Random) -> dict[str, Any]:
        return {"n": rng.random(), "difficulty": self.config.difficulty}


def streams(seed: int = 0, split="train", *, env: Env | None = None) -> TaskStreams:
    table = EnvTable(id="counting", name="e")
    return TaskStreams([table], [env or Counting(EnvConfig())], split, seed)


def test_tasks_depend_on_seed_and_split_and_on_nothing_else():
    def first(seed, split="train"):
        s = streams(seed, split)
        return [s.next("e") for _ in range(9)]

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert first(3) != first(3, "heldout")
    assert {task.split for task in first(3, "heldout")} == {"heldout"}


def test_each_difficulty_is_a_stream_of_its_own():
    s = streams(env=Graded(GradedConfig()))
    assert [s.next("e", d).data["difficulty"] for d in (0, 1, 3, 1)] == [2, 1, 3, 1]
    again = streams(env=Graded(GradedConfig()))
    assert again.next("e", 3) == streams(env=Graded(GradedConfig())).next("e", 3)


def test_a_stream_that_ends_is_named():
    class Finite(Counting):
        def tasks(self, split, seed):
            return iter(())

    with pytest.raises(OutOfTasks, match="environment 'e' has no more tasks"):
        streams(env=Finite(EnvConfig())).next("e")
