"""What an update says of its learning, against the same numbers computed in numpy from its tokens."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import sample
from test_learner import LENGTHS, learner, with_rollout_logprobs

from trainer.config import LossConfig, OptimConfig
from trainer.learning_meter import LearningMeter
from trainer.loss_inputs import LossInputs
from trainer.parallel import ALONE
from trainer.sample import TrainSample


def batch() -> list[TrainSample]:
    """Samples of two environments."""
    rng = random.Random(3)
    made = [sample(f"s{i}", n, rng) for i, n in enumerate(LENGTHS)]
    return [replace(s, env=("shop", "maths")[i % 3 == 0]) for i, s in enumerate(made)]


def by_hand(now, behaviour, engine, advantages) -> dict[str, float]:
    """The metrics of one environment from its tokens' numbers."""
    now, behaviour, engine, a = (
        np.asarray(v, dtype=np.float64) for v in (now, behaviour, engine, advantages)
    )
    r, w = np.exp(now - behaviour), np.exp(now - engine)
    return {
        "policy_tokens": len(now),
        "kl_behaviour": float(np.mean(r - 1 - np.log(r))),
        "kl_engine": float(np.mean(w - 1 - np.log(w))),
        "ratio_max": float(r.max()),
        "engine_ratio_max": float(w.max()),
        "ess": float(w.sum() ** 2 / (len(w) * (w**2).sum())),
        # Triplet clipping of the loss `longcat`.
        "clipped": float(np.mean(np.where(a > 0, r > 1.28, (a < 0) & ((r < 0.8) | (r > 3))))),
        "advantage": float(a.mean()),
        "advantage_std": float(a.std()),
    }


@pytest.mark.heavy
@pytest.mark.parametrize("micro_batch_tokens", [48, 400])
def test_an_updates_metrics_are_those_of_its_tokens(checkpoint, micro_batch_tokens):
    """The second update of samples that version 0 wrote, on an engine that differs from the learner."""
    loss = LossConfig(max_completion_tokens=20, behaviour="learner")
    ours = learner(
        checkpoint,
        keep_versions=1,
        loss=loss,
        optim=OptimConfig(lr=1e-3),
        micro_batch_tokens=micro_batch_tokens,
    )
    rng = random.Random(5)
    old = ours.logprobs(batch())
    engine = [[min(x + rng.gauss(0, 0.2), 0.0) for x in one] for one in old]
    told = with_rollout_logprobs(batch(), engine, 0)
    ours.step(told)
    now = ours.logprobs(told)
    metrics = ours.step(told).metrics
    for env in ("shop", "maths", "all"):
        chosen = [i for i, s in enumerate(told) if env in (s.env, "all")]
        flat = [[x for i in chosen for x in one[i]] for one in (now, old, engine)]
        advantages = [
            a
            for i in chosen
            for a, m in zip(told[i].advantages, told[i].loss_mask, strict=True)
            if m
        ]
        for name, wanted in by_hand(*flat, advantages).items():
            assert metrics[f"learn/{env}/{name}"] == pytest.approx(wanted, rel=1e-3, abs=1e-6), name
        assert 0 < metrics[f"learn/{env}/entropy"] < math.log(512)
    assert metrics["learn/all/entropy"] == pytest.approx(metrics["loss/entropy"], rel=1e-6)
    assert metrics["learn/all/kl_behaviour"] > 1e-4, "the policy has moved"
    clipped = metrics["loss/clipped_pos"] + metrics["loss/clipped_neg"]
    assert metrics["learn/all/clipped"] == pytest.approx(clipped) and clipped > 0


def test_an_environment_without_a_policy_token_has_no_metrics_and_far_ratios_stay_finite():
    samples = batch()[:2]
    meter = LearningMeter(samples, torch.device("cpu"))
    far = torch.tensor([-500.0, 0.0])
    meter.note(
        LossInputs(
            learner_logprobs_N=torch.zeros(2),
            behaviour_logprobs_N=far,
            proximal_logprobs_N=torch.zeros(2),
            rollout_logprobs_N=far,
            advantages_N=torch.tensor([1.0, -1.0]),
            sample_N=torch.tensor([1, 1]),
            sample_tokens_N=torch.tensor([2, 2]),
            num_samples=2,
            num_tokens=2,
            max_completion_tokens=2,
        ),
        torch.tensor([0.5, 1.5]),
    )
    metrics = meter.metrics(ALONE)
    assert {key.split("/")[1] for key in metrics} == {samples[1].env, "all"}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["learn/all/ess"] == pytest.approx(0.5)
    assert metrics["learn/all/entropy"] == 1.0 and metrics["learn/all/advantage_std"] == 1.0
