"""A loss, a correction, an advantage: each is one function and one entry, declared here as a user would."""

from dataclasses import replace

import pytest
from pydantic import PositiveFloat, ValidationError
from test_learner import learner, samples, with_rollout_logprobs

from rl.config import RunConfig
from rl.config_file import ConfigError, build
from rl.samples.samples import group_samples
from trainer.advantage import BATCH_ADVANTAGES, GROUP_ADVANTAGES
from trainer.config import LearnerConfig, LossConfig
from trainer.correction import CORRECTIONS, Correction
from trainer.loss import LOSSES, Loss
from trainer.section import Section


class ScaledConfig(Section):
    """scale: of the whole loss."""

    scale: PositiveFloat = 3.0


def scaled(x, w_N, c: ScaledConfig):
    gain_N = x.advantages_N * x.learner_logprobs_N
    return -c.scale * (w_N * gain_N).sum() / x.num_tokens, {"loss/scaled": w_N.sum()}


def halved(x, c: Section):
    return x.rollout_logprobs_N.new_full((len(x.rollout_logprobs_N),), 0.5), {}


def batch(ours):
    return with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)


def loss_of(checkpoint, config) -> float:
    ours = learner(checkpoint, **config)
    result = ours.step(batch(ours))
    assert ours.version == 1
    return result.metrics["loss/loss"]


def test_a_loss_is_a_function_and_an_entry(checkpoint, monkeypatch):
    with pytest.raises(ValidationError, match="Input should be 'longcat'"):
        LossConfig(kind="scaled")
    monkeypatch.setitem(LOSSES, "scaled", Loss(scaled, ScaledConfig, "dr_grpo"))
    config = LearnerConfig.model_validate({"loss": {"kind": "scaled", "scaled": {"scale": 6}}})
    assert (config.advantage, config.loss.correction) == ("dr_grpo", "none")
    assert config.loss.loss_settings == ScaledConfig(scale=6)
    assert config.loss.model_dump()["scaled"] == {"scale": 6}
    assert LearnerConfig.model_validate(config.model_dump()) == config
    usual = loss_of(checkpoint, {"loss": {"kind": "scaled"}})
    assert usual != 0
    assert loss_of(checkpoint, {"loss": config.loss}) == pytest.approx(2 * usual)


def test_its_settings_are_checked_where_they_are(monkeypatch):
    monkeypatch.setitem(LOSSES, "scaled", Loss(scaled, ScaledConfig, "grpo"))

    def sentence(loss: dict[str, object]) -> str:
        values = {"name": "x", "model": {"init": {}}, "env": [{"id": "calculator"}]}
        with pytest.raises(ConfigError) as caught:
            build(values | {"learner": {"loss": loss}}, "file", (), RunConfig)
        return str(caught.value)

    found = sentence({"kind": "scaled", "scaled": {"scal": 1}})
    assert found == "file: learner.loss.scaled.scal: unknown key, did you mean 'scale'?"
    found = sentence({"kind": "scaled", "scaled": {"scale": 0}})
    assert found == "file: learner.loss.scaled.scale: input should be greater than 0, got 0"
    assert "[scaled] is set, and nothing reads it" in sentence({"scaled": {"scale": 2}})
    assert (
        sentence({"scale": {}}) == "file: learner.loss.scale: unknown key, did you mean 'scaled'?"
    )


def test_a_correction_is_a_function_and_an_entry(checkpoint, monkeypatch):
    with pytest.raises(ValidationError, match="Input should be 'none'"):
        LossConfig(kind="grpo", correction="halved")
    monkeypatch.setitem(CORRECTIONS, "halved", Correction(halved, Section))
    plain = loss_of(checkpoint, {"loss": {"kind": "grpo"}})
    half = loss_of(checkpoint, {"loss": {"kind": "grpo", "correction": "halved"}})
    assert half == pytest.approx(plain / 2) and plain != 0


def test_an_advantage_of_a_batch_is_a_function_and_an_entry(checkpoint, monkeypatch):
    def ones(batch):
        return [replace(s, advantages=tuple(float(m) for m in s.loss_mask)) for s in batch]

    with pytest.raises(ValidationError, match="Input should be 'grpo'"):
        LearnerConfig(advantage="ones")
    monkeypatch.setitem(BATCH_ADVANTAGES, "ones", ones)
    config = {"loss": {"kind": "grpo"}, "advantage": "ones"}
    assert loss_of(checkpoint, config) == pytest.approx(-1.0)


def test_an_advantage_of_a_group_is_a_function_and_an_entry(checkpoint, monkeypatch):
    from fakes import scored

    monkeypatch.setitem(GROUP_ADVANTAGES, "best", lambda r: [float(v == max(r)) for v in r])
    config = LearnerConfig(advantage="best")
    members = [scored(f"m{i}", float(i)) for i in range(3)]
    found, _ = group_samples(members, config.advantage, filter_zero_variance=True)
    assert [max(s.advantages) for s in found] == [0.0, 0.0, 1.0]
    ours = learner(checkpoint, advantage="best")
    ours.step(batch(ours))
    assert ours.version == 1


def test_a_critics_advantage_needs_a_loss_with_a_critic():
    with pytest.raises(ValidationError, match='"gae" needs the critic of "ppo"'):
        LearnerConfig.model_validate({"advantage": "gae"})
