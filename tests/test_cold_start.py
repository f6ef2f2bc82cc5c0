"""Demonstrations as samples, the demonstrator's slips, and the cache of first checkpoints."""

import random
from functools import partial

import pytest

from envs.builtin.calculator import Calculator
from envs.env import call, say
from envs.message import Message, ToolCall, ToolSchema
from envs.session import Opening
from rl.cold_start import (
    ColdStartError,
    demonstrations,
    first_checkpoint,
    kept_checkpoint,
    slip,
)
from rl.config import InitConfig, ModelConfig, RunConfig
from rl.config_error import ConfigError
from rl.env_table import EnvTable, NoiseConfig
from rl.preflight.tokenizer import check_new_tokenizer
from trainer.config import LearnerConfig, OptimConfig, SftConfig


class Costly(Calculator):
    """A calculator whose calls cost, the first ones nothing."""

    name = "costly"
    reward_range = (-1.0, 1.0)

    async def score(self):
        return {**await super().score(), "cost": -0.0}


class Brittle(Calculator):
    """A calculator whose expert takes it that every call succeeds."""

    name = "brittle"

    def expert(self, task):
        a, b = task.data["a"], task.data["b"]
        right = {"add": a + b, "subtract": a - b, "multiply": a * b}[task.data["op"]]
        results = yield call(task.data["op"], a=a, b=b)
        yield say({str(right): str(right)}[results[0]])


class Hopeless(Calculator):
    """A calculator whose expert gives up at once."""

    name = "hopeless"

    def expert(self, task):
        yield say("I cannot")


def config(tmp_path, checkpoint, env: str = "sensors", **sft) -> RunConfig:
    settings = {"demonstrations": 12, "steps": 2, "batch_size": 4, "optim": OptimConfig(lr=1e-3)}
    return RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(path=str(checkpoint)),
        env=(EnvTable(id=env),),
        sft=SftConfig(**{**settings, **sft}),
        learner=LearnerConfig(threads=1),
    )


def test_demonstrations_are_the_experts_episodes_with_its_own_tokens_marked(
    tmp_path, checkpoint, renderer
):
    samples = demonstrations(config(tmp_path, checkpoint), renderer)
    assert len(samples) == 12
    for s in samples:
        assert s.env == "sensors"
        mine = [id for id, wanted in zip(s.token_ids, s.loss_mask, strict=True) if wanted]
        text = renderer.text(mine)
        assert "<longcat_tool_call>read" in text and text.endswith("<|end|>")
        assert not any(mark in text for mark in ("<|user|>", "<|tool|>", "<|assistant|>"))


def test_an_expert_that_fails_a_task_is_an_error_that_names_it(tmp_path, checkpoint, renderer):
    with pytest.raises(
        ColdStartError, match=r"'test_cold_start:Hopeless': its expert fails task \w+"
    ):
        demonstrations(config(tmp_path, checkpoint, f"{__name__}:Hopeless"), renderer)


def test_a_term_of_costs_makes_no_expert_fail(tmp_path, checkpoint, renderer):
    samples = demonstrations(config(tmp_path, checkpoint, f"{__name__}:Costly"), renderer)
    assert len(samples) == 12


def test_an_expert_that_breaks_on_a_slip_is_one_sentence(tmp_path, checkpoint, renderer):
    with pytest.raises(ColdStartError) as caught:
        demonstrations(config(tmp_path, checkpoint, f"{__name__}:Brittle", slip=0.9), renderer)
    sentence = str(caught.value)
    assert "expert() raises" in sentence and "it has to go on, whatever they are" in sentence
    assert "\n" not in sentence


def test_slips_are_demonstrated_as_often_as_asked_for(tmp_path, checkpoint, renderer):
    samples = demonstrations(config(tmp_path, checkpoint, slip=0.5, demonstrations=60), renderer)
    gave_up = sum("?<|end|>" in renderer.text(s.token_ids) for s in samples)
    assert 30 <= gave_up <= 55, "half of all calls, of which a task takes up to four"


def test_demonstrations_do_not_depend_on_what_is_played_beside_them(
    tmp_path, checkpoint, renderer, monkeypatch
):
    settings = config(tmp_path, checkpoint, slip=0.5)
    together = demonstrations(settings, renderer)
    monkeypatch.setattr("rl.cold_start.AT_ONCE", 1)
    assert demonstrations(settings, renderer) == together


ADD, SUBTRACT, FIND = (
    ToolSchema(name, "", {"properties": {letter: {} for letter in letters}})
    for name, letters in (("add", "ab"), ("subtract", "ab"), ("find", "q"))
)


def test_a_slip_takes_another_tool_with_the_same_arguments_or_gives_up():
    call = Message("assistant", tool_calls=(ToolCall("add", {"a": 1, "b": 2}),))
    wrong = slip(call, Opening((), (ADD, SUBTRACT, FIND)), random.Random(0))
    assert wrong.tool_calls == (ToolCall("subtract", {"a": 1, "b": 2}),)
    assert slip(call, Opening((), (ADD, FIND)), random.Random(0)) == say("?")
    assert slip(say("42"), Opening((), (ADD,)), random.Random(0)) == say("42")


def test_a_run_without_a_cold_start_begins_with_its_policy_as_it_is(tmp_path, checkpoint):
    plain = config(tmp_path, checkpoint).model_copy(update={"sft": None})
    assert first_checkpoint(plain, report_nothing) == (str(checkpoint), False)
    assert not (tmp_path / "runs").exists()


def report_nothing(stage: str, step: int, steps: int, loss: float) -> None:
    pass


def test_a_cold_start_is_made_once_and_found_again(tmp_path, checkpoint):
    settings = config(tmp_path, checkpoint)
    reported: list[tuple] = []
    folder, made = first_checkpoint(settings, lambda *r: reported.append(r))
    assert made and [r[:3] for r in reported] == [("cold start", 1, 2), ("cold start", 2, 2)]
    assert first_checkpoint(settings, report_nothing) == (folder, False)
    other = settings.model_copy(update={"seed": 9})
    assert first_checkpoint(other, report_nothing)[0] != folder


def test_a_cold_start_that_fails_leaves_nothing_behind(tmp_path, checkpoint):
    with pytest.raises(ColdStartError, match="expert fails"):
        first_checkpoint(config(tmp_path, checkpoint, f"{__name__}:Hopeless"), report_nothing)
    assert list((tmp_path / "runs" / ".cache").iterdir()) == []


@pytest.mark.heavy
def test_a_new_policys_tokenizer_is_looked_at_before_anything_is_trained(tmp_path, checkpoint):
    made = config(tmp_path, checkpoint, "calculator")
    made = made.model_copy(update={"model": ModelConfig(init=InitConfig())})
    short = made.episode.model_copy(update={"max_tokens": 40, "max_completion_tokens": 8})
    small = made.model_copy(update={"episode": short})

    def no_update(*_: object) -> None:
        raise AssertionError("it was trained")

    look = partial(check_new_tokenizer, small)
    with pytest.raises(ConfigError, match="its openings leave no room for an answer"):
        first_checkpoint(small, no_update, look)
    assert list((tmp_path / "runs" / ".cache").iterdir()) == []
    with pytest.raises(ConfigError, match="its openings leave no room for an answer"):
        check_new_tokenizer(small)
    kept, _ = first_checkpoint(made, report_nothing, partial(check_new_tokenizer, made))
    assert kept_checkpoint(small) == kept, "the limit changes no policy"
    with pytest.raises(ConfigError, match="its openings leave no room for an answer"):
        first_checkpoint(small, no_update, look)


def test_where_training_is_noisy_every_other_demonstration_is(tmp_path, checkpoint, renderer):
    clean = config(tmp_path, checkpoint, "orders")
    table = EnvTable(id="orders", noise=NoiseConfig(level=3))
    noisy = clean.model_copy(update={"env": (table,)})
    pairs = zip(demonstrations(clean, renderer), demonstrations(noisy, renderer), strict=True)
    same = [a.token_ids == b.token_ids for a, b in pairs]
    assert same == [True, False] * 6
