"""benchmarks/against_trl.py: what it asks on both sides, and how it counts."""

import importlib
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from envs.env import EnvConfig
from envs.session import demonstrate
from envs.tool import read_tools
from rl.config import RunConfig
from trainer.small.presets import VOCAB_SIZE
from trainer.small.tokenizer import train_tokenizer

KINDS = ("single", "instant", "slow")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def outcome(rate: float) -> dict[str, float]:
    return {"trajectories": rate, "seconds": 1.0, "policy_tokens": 64 * rate}


def play(side: str, dtype: str, *rates: float) -> dict[str, Any]:
    outcomes = [outcome(rate) for rate in rates]
    return {"kind": "single", "side": side, "dtype": dtype, "outcomes": outcomes, "costs": []}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_has_the_tasks_that_dorado_plays_and_valid_settings(kind, tmp_path):
    main, side = module("against_trl"), module("peer.dorado_side")
    job = main.make_job(kind, "bfloat16", tmp_path, quick=True, repetition=1)
    config = RunConfig.model_validate(side.settings(job, "x", tmp_path))
    world = config.env[0].make()
    first = next(world.tasks("train", config.seed))
    assert module("peer.arithmetic").data_of(first) == job["train"][0]
    assert len(job["train"]) == config.steps * config.batch.groups
    assert config.engine.dtype == config.learner.dtype == "bfloat16"


def test_tools_stand_in_the_order_in_which_trl_lists_them():
    tools = list(read_tools(module("peer.arithmetic").Chain))
    assert tools == sorted(tools) == ["add", "multiply", "subtract"]


async def test_the_expert_solves_a_chain():
    world_type = module("peer.arithmetic").Chain
    task = next(world_type(EnvConfig()).tasks("train", 0))
    _, said, rewards = await demonstrate(world_type(EnvConfig()), task)
    assert 2 * len(task.data["steps"]) + 1 == len(said) and rewards == {"solved": 1.0}


def test_a_chain_takes_three_to_five_turns():
    work = module("peer.work")
    data = work.draw(random.Random(0), 4)
    assert len(data["steps"]) == 4 and {n + 1 for n in work.CHAIN_STEPS} == {3, 4, 5}
    assert work.expected({"a": 4, "steps": [("multiply", "times", 7), ("add", "plus", 5)]}) == 33


def test_the_digit_reward_counts_digits_of_the_longest_completion():
    share = module("peer.work").digit_share
    tokenizer = train_tokenizer(["12 plus 30 ?", "ab 456789"], VOCAB_SIZE["tiny"])
    assert share(tokenizer.encode("0123456789")) == 10 / 64
    assert share(tokenizer.encode("12 ab 3456!<|end|>")) == 6 / 64 and share([]) == 0


def test_cpu_seconds_between_two_looks_are_in_proportion():
    at = module("peer.cpu_seconds")._at
    track = [(10.0, 2.0), (12.0, 4.0)]
    assert at(track, 11.0) == 3.0 and at(track, 20.0) == 4.0
    assert at(track, 9.9) == 2.0 and at(track, 5.0) == 0.0


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::LearnerActor.step", "learner"),
        ("ray::engine-0:EngineActor.__init__", "engine actor"),
        ("VLLM::EngineCore", "engine core"),
        ("ray::IDLE", "Ray"),
        ("bash", "other"),
    ],
)
def test_a_process_belongs_to_a_part_by_its_name(command, kind):
    assert module("peer.cpu_seconds").kind_of(command, root=False) == kind


def test_the_learners_parts_add_up_to_its_cpu_seconds():
    steps = [{"time/step_seconds": 2.0, "time/behaviour_seconds": 0.5}] * 2
    parts = module("peer.dorado_side")._learner_parts(10.0, 8.0, steps)
    assert sum(parts.values()) == pytest.approx(10.0)
    assert parts["learner: behaviour"] == pytest.approx(2.0)
    assert parts["learner: between steps"] == pytest.approx(2.0)


def test_each_sides_faster_dtype_counts():
    plays = [
        play("TRL", "float32", 50.0, 60.0),
        play("Dorado", "float32", 40.0),
        play("TRL", "bfloat16", 30.0),
        play("Dorado", "bfloat16", 110.0),
    ]
    assert module("against_trl").ratios(plays) == {"single": 2.0}
