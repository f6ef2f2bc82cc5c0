"""Task streams: the same for the same seed, one per environment and difficulty, and never at their end."""

import random
from typing import Any, ClassVar

import pytest
from fakes import Counting
from pydantic import Field

from envs.env import Env, EnvConfig, Task
from rl.env_table import EnvTable
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


class Runs(Env):
    """Its third task cannot be made."""

    name = "runs"

    def tasks(self, split, seed):
        yield Task(self.name, {"n": 1})
        yield Task(self.name, {"n": 2})
        raise KeyError("no third")


class Odd(Env):
    name = "odd"

    def tasks(self, split, seed):
        yield Task(self.name, {"n": object()})


@pytest.mark.parametrize(
    ("env", "fine", "sentence"),
    [
        (Runs(EnvConfig()), 2, "environment 'e' cannot make a task: KeyError: 'no third'"),
        (
            Odd(EnvConfig()),
            0,
            "environment 'e' cannot make a task: TypeError: Object of type object",
        ),
    ],
)
def test_a_task_that_cannot_be_made_is_one_sentence(env, fine, sentence):
    s = streams(env=env)
    for _ in range(fine):
        s.next("e")
    with pytest.raises(OutOfTasks) as caught:
        s.next("e")
    assert str(caught.value).startswith(sentence)
