"""The critic: turns, targets, and a learner that trains it with the policy."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import sample
from transformers import AutoModelForCausalLM

from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.critic import Critic, Targets, mean_error, turn_targets, value_inputs
from trainer.learner import Learner
from trainer.loss import PpoConfig
from trainer.sample import TrainSample

LENGTHS = (12, 31, 9, 40, 17)
PPO = PpoConfig(gamma=0.9, lam=0.7, critic_lr=3e-3)


def samples(version: int = 0) -> list[TrainSample]:
    rng = random.Random(4)
    return [
        sample(f"s{i}", n, rng, version=version, reward=reward)
        for i, (n, reward) in enumerate(zip(LENGTHS, (1.0, 0.0, -1.0, 0.5, 2.0), strict=True))
    ]


def learner(folder: Path, *, keep_versions: int = 0, lr: float = 1e-2, **config) -> Learner:
    settings = {
        "micro_batch_tokens": 64,
        "threads": 1,
        "loss": LossConfig(kind="ppo", ppo=PPO),
        "optim": OptimConfig(lr=lr),
    }
    return Learner(
        folder,
        LearnerConfig(**{**settings, **config}),
        temperature=1.0,
        keep_versions=keep_versions,
    )


def as_written(ours: Learner, batch: Sequence[TrainSample]) -> list[TrainSample]:
    """The samples with the log-probs that an engine without any gap would have reported."""
    told = []
    for s, values in zip(batch, ours.logprobs(batch), strict=True):
        left = iter(values)
        told.append(
            replace(s, rollout_logprobs=tuple(next(left) if m else 0.0 for m in s.loss_mask))
        )
    return told


def flat(values: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor([v for row in values for v in row])


@pytest.mark.parametrize(
    ("mask", "lengths"),
    [("", []), ("...", []), (".x", [1]), (".xx.x..xxx", [2, 1, 3]), ("..xxxx", [4])],
)
def test_a_turn_is_a_run_of_the_policys_tokens(mask, lengths):
    mask = f".{mask}"
    numbers = (0.0,) * len(mask)
    written = tuple(c == "x" for c in mask)
    s = TrainSample("s", "shop", (1,) * len(mask), written, numbers, numbers, (0,) * len(mask), 2.0)
    assert s.turn_lengths == lengths
    assert s.rewards_by_turn == [*[0.0] * (len(lengths) - 1), 2.0][: len(lengths)]
    given = tuple(float(k) for k in range(len(lengths)))
    assert replace(s, turn_rewards=given).rewards_by_turn == list(given or s.rewards_by_turn)


def test_targets_by_hand():
    """Turns of 2 and 1 tokens; only the values at their starts count."""
    s = TrainSample(
        "s", "shop", (1, 2, 3, 4, 5), (False, True, True, False, True), (0.0,) * 5, (0.0,) * 5,
        (0,) * 5, reward=3.0,
    )  # fmt: skip
    found = turn_targets(s, [0.5, 99.0, 2.0], PPO)
    last = 3.0 - 2.0
    first = (0.9 * 2.0 - 0.5) + 0.9 * 0.7 * last
    assert found.starts == (True, False, True)
    assert found.behaviour_values == (0.5, 0.5, 2.0)
    assert found.advantages == pytest.approx((first, first, last))
    assert found.returns == pytest.approx((first + 0.5, first + 0.5, 3.0))
    earlier = turn_targets(replace(s, turn_rewards=(1.0, 2.0)), [0.5, 99.0, 2.0], PPO)
    assert earlier.advantages == pytest.approx((1.0 + first - 0.9 * 0.7, first + 0.37, 0.0))


def test_a_micro_batch_gets_its_own_samples_targets_and_the_whole_batchs_count():
    def targets(tokens: int, value: float) -> Targets:
        starts = (True, *[False] * (tokens - 1))
        same = (value,) * tokens
        return Targets(starts, same, same, same)

    every = [targets(2, 0.0), targets(3, 1.0), targets(1, 2.0)]
    found = value_inputs(torch.zeros(3), torch.tensor([2, 0, 0]), every)
    assert found.returns_N.tolist() == found.behaviour_values_N.tolist() == [2.0, 0.0, 0.0]
    assert found.starts_N.tolist() == [True, True, False]
    assert found.num_turns == 3


def test_a_new_critic_values_nothing_and_answers_in_float32():
    values = Critic(3)(torch.randn(5, 3, dtype=torch.bfloat16))
    assert values.tolist() == [0.0] * 5 and values.dtype == torch.float32


def test_a_first_step_is_that_of_the_rewards_alone(checkpoint):
    """Values are 0: each turn's advantage is the reward, discounted by gamma lambda per turn after it."""
    ours = learner(checkpoint)
    batch = as_written(ours, samples())
    metrics = ours.step(batch).metrics
    advantages, errors = [], []
    for s in batch:
        lengths = s.turn_lengths
        for k, length in enumerate(lengths):
            expected = s.reward * (0.9 * 0.7) ** (len(lengths) - 1 - k)
            advantages += [expected] * length
            errors.append(expected**2)
    value = sum(errors) / len(errors)
    assert metrics["loss/value"] == pytest.approx(value, rel=1e-5)
    policy = -sum(advantages) / len(advantages)
    assert metrics["loss/loss"] == pytest.approx(policy + 0.5 * value, rel=1e-4)
    assert metrics["loss/clipped_pos"] == metrics["loss/clipped_neg"] == 0


@pytest.mark.heavy
def test_the_critic_learns_what_the_rewards_are(family_checkpoint):
    ours = learner(family_checkpoint, lr=3e-3)
    said = []
    for version in range(12):
        batch = as_written(ours, samples(version))
        said.append(ours.step(batch).metrics["loss/value"])
    assert said[-1] < 0.5 * said[0]
    assert ours.scorer.critic.bias != 0 and (ours.scorer.critic.weight != 0).all()


def test_the_value_is_a_linear_map_of_transformers_last_hidden_state(family_checkpoint):
    ours = learner(family_checkpoint)
    torch.manual_seed(0)
    torch.nn.init.normal_(ours.scorer.critic.weight)
    torch.nn.init.constant_(ours.scorer.critic.bias, 0.3)
    found = ours.passes.by_sample(samples(), ours._behaviour_values)
    model = AutoModelForCausalLM.from_pretrained(family_checkpoint)
    for s, values in zip(samples(), found, strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([s.token_ids])).last_hidden_state[0]
        before = [t - 1 for t, m in enumerate(s.loss_mask) if m]
        wanted = hidden[before] @ ours.scorer.critic.weight + ours.scorer.critic.bias
        assert torch.allclose(torch.tensor(values), wanted, rtol=1e-4, atol=1e-4)


def test_stale_samples_are_valued_under_their_own_versions_weights_and_head(checkpoint):
    ours = learner(checkpoint, keep_versions=1)
    for version in range(2):
        if version:
            wanted = ours.passes.by_sample(samples(1), ours._behaviour_values)
        ours.step(as_written(ours, samples(version)))
    found = ours.passes.by_sample(samples(1), ours._behaviour_values)
    present = ours.passes.by_sample(samples(2), ours._behaviour_values)
    assert torch.allclose(flat(found), flat(wanted), atol=1e-6)
    assert not torch.allclose(flat(present), flat(wanted), atol=1e-3)


def test_the_values_error_trains_the_policys_trunk_too(checkpoint):
    """Two learners that differ in the weight of the value loss alone; no norm is clipped."""
    trunks = []
    for weight in (1e-9, 0.5):
        ours = learner(
            checkpoint,
            loss=LossConfig(kind="ppo", ppo=PpoConfig(value_weight=weight)),
            optim=OptimConfig(lr=1e-2, max_grad_norm=1e9),
        )
        torch.nn.init.constant_(ours.scorer.critic.weight, 0.05)
        ours.step(as_written(ours, samples()))
        trunks.append(torch.cat([p.detach().flatten() for p in ours.model.model.parameters()]))
    assert (trunks[0] - trunks[1]).abs().max() > 1e-3


def test_a_step_is_the_same_in_one_micro_batch_or_many(checkpoint):
    found = []
    for tokens in (40, 400):
        ours = learner(checkpoint, micro_batch_tokens=tokens)
        torch.nn.init.constant_(ours.scorer.critic.weight, 0.05)
        found.append(ours.step(as_written(ours, samples())).metrics)
    for key in ("loss/loss", "loss/value", "optim/grad_norm"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4), key


def test_with_the_engines_logprobs_as_behaviour_the_present_values_are_used(checkpoint):
    ours = learner(checkpoint, loss=LossConfig(kind="ppo", behaviour="engine"))
    for _ in range(2):
        assert math.isfinite(ours.step(samples(0)).metrics["loss/value"])


@pytest.mark.heavy
def test_a_constant_reward_is_learned_at_the_default_rates(checkpoint):
    """The policy's usual rate of 1e-6 would leave the value where it was."""
    ours = learner(checkpoint, loss=LossConfig(kind="ppo"), optim=OptimConfig())
    batch = [replace(s, reward=1.0) for s in samples()[:3]]
    errors = []
    for version in range(30):
        now = [replace(s, versions=(version,) * len(s.versions)) for s in batch]
        errors.append(ours.step(as_written(ours, now)).metrics["loss/value"])
    assert errors[0] > 0.5
    assert errors[-1] < 0.02


def test_a_head_alone_is_trained_while_it_warms_up(checkpoint):
    ppo = PpoConfig(critic_warmup=2, critic_lr=1e-2, value_centring=0)
    ours = learner(checkpoint, loss=LossConfig(kind="ppo", ppo=ppo))
    before = ours.logprobs(samples())
    for version in range(2):
        metrics = ours.step(as_written(ours, samples(version))).metrics
        assert metrics["optim/lr"] == 0 and ours.logprobs(samples()) == before
        # Adam's first steps are as long as its rate.
        assert ours.scorer.critic.bias.abs().item() == pytest.approx(1e-2 * (version + 1), rel=0.3)
    assert ours.step(as_written(ours, samples(2))).metrics["optim/lr"] == 1e-2
    assert ours.logprobs(samples()) != before


def test_a_bias_moves_by_its_share_of_the_mean_error():
    def targets(*errors: float) -> Targets:
        starts = tuple(i % 2 == 0 for i in range(len(errors)))
        zeros = (0.5,) * len(errors)
        return Targets(starts, zeros, tuple(0.5 + e for e in errors), zeros)

    error = mean_error([targets(1.0, 9.0, 2.0), targets(6.0)])
    assert error == pytest.approx(3.0)
    critic = Critic(2)
    critic.centre(error, 0.1)
    assert critic.bias.item() == pytest.approx(0.3)
    assert mean_error([]) == 0.0
