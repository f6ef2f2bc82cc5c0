"""`loss.behaviour = "auto"`: the engine's log-probs stand for the learner's where they are the same."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from fakes import sample

from trainer.batch import PackedBatch, head, pack
from trainer.behaviour import PROBE, BehaviourPass
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.learner import Learner
from trainer.parallel import ALONE
from trainer.sample import TrainSample
from trainer.step_result import StepResult

LENGTHS = (14, 31, 12, 40, 19, 23, 17, 18)


def learner(folder, behaviour: str) -> Learner:
    loss = LossConfig.model_validate({"behaviour": behaviour, "max_completion_tokens": 20})
    config = LearnerConfig(micro_batch_tokens=64, loss=loss, optim=OptimConfig(lr=1e-3), threads=1)
    return Learner(folder, config, temperature=1.0, keep_versions=2)


def written(ours: Learner, gaps: Sequence[float] = (0.0,) * len(LENGTHS)) -> list[TrainSample]:
    """Samples of the present version, from an engine that is off by these gaps at every token."""
    rng = random.Random(ours.version)
    batch = [sample(f"s{i}", n, rng, version=ours.version) for i, n in enumerate(LENGTHS)]
    said: list[TrainSample] = []
    for s, values, gap in zip(batch, ours.logprobs(batch), gaps, strict=True):
        left = iter(values)
        told = tuple(next(left) + gap if mine else 0.0 for mine in s.loss_mask)
        said.append(replace(s, rollout_logprobs=told))
    return said


def after_two_steps(
    checkpoint, behaviour: str, gaps: Sequence[float] = (0.0,) * len(LENGTHS)
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """The second update is on samples of the version before the first: result and weights."""
    ours = learner(checkpoint, behaviour)
    old = written(ours, gaps)
    ours.step(written(ours))
    result = ours.step(old)
    return result, {name: p.detach().clone() for name, p in ours.model.named_parameters()}


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.heavy
def test_one_micro_batch_is_computed_where_the_engine_agrees_and_the_update_is_the_same(checkpoint):
    whole, wanted = after_two_steps(checkpoint, "learner")
    result, weights = after_two_steps(checkpoint, "auto")
    assert whole.metrics["parity/share"] == 1
    assert 0 < result.metrics["parity/share"] < 0.5
    assert result.metrics["parity/mean_abs_dlogp"] <= 1e-6
    assert result.metrics["loss/loss"] == pytest.approx(whole.metrics["loss/loss"], rel=1e-5)
    assert largest(weights, wanted) <= 2e-6  # Adam's step is 1e-3


@pytest.mark.heavy
def test_all_is_computed_to_the_bit_where_the_engine_differs(checkpoint):
    gaps = (5e-6,) * len(LENGTHS)
    whole, wanted = after_two_steps(checkpoint, "learner", gaps)
    result, weights = after_two_steps(checkpoint, "auto", gaps)
    assert result.metrics["parity/share"] == 1
    assert result.metrics["loss/loss"] == whole.metrics["loss/loss"]
    assert largest(weights, wanted) == 0


@pytest.mark.parametrize(
    ("gaps", "passes"),
    [
        ([0.0] * 200, 1),
        ([9e-7] * 200, 1),
        ([1.1e-6] * 200, 2),
        ([1.9e-5] + [0.0] * 199, 1),
        ([2.1e-5] + [0.0] * 199, 2),
        ([math.inf] + [0.0] * 199, 2),
    ],
)
def test_the_mean_gap_and_the_largest_decide(gaps, passes):
    """Of two micro-batches alike the second is computed again, or is not."""
    batch = pack([sample("s", 201, random.Random(0), version=3)], [0], torch.device("cpu"))
    gap_N = torch.tensor(gaps[: len(batch.versions_N)], dtype=torch.float64)
    batch = replace(batch, rollout_logprobs_N=torch.zeros(len(gap_N), dtype=torch.float64))
    computed: list[int] = []

    def score(batch: PackedBatch, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        computed.append(int(weights["version"]))
        return batch.rollout_logprobs_N + gap_N

    behaviour = BehaviourPass("auto", score, ALONE)
    for _ in range(2):
        behaviour.logprobs(batch, 4, {3: {"version": torch.tensor(3)}})
    assert computed == [3] * passes


def test_the_first_tokens_of_a_large_micro_batch_decide_for_the_rest():
    """Samples of 101 tokens, 600 in all: the pass is over the first ones that hold 512 of the version's."""
    rng = random.Random(0)
    samples = [sample(f"s{i}", 101, rng, version=3) for i in range(20)]
    batch = pack(samples, range(20), torch.device("cpu"))
    lengths: list[int] = []

    def score(batch: PackedBatch, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        lengths.append(len(batch.versions_N))
        return batch.rollout_logprobs_N + weights["gap"]

    for gap, parts in ((0.0, 1), (1.0, 2)):
        lengths.clear()
        behaviour = BehaviourPass("auto", score, ALONE)
        found_N = behaviour.logprobs(batch, 4, {3: {"gap": torch.tensor(gap)}})
        assert PROBE <= lengths[0] < PROBE + 101
        assert lengths[1:] == [len(batch.versions_N)] * (parts - 1)
        known = int((~found_N.isnan()).sum())
        assert known == (lengths[0] if parts == 1 else len(found_N))
        assert torch.equal(
            found_N[:known].double() - gap, batch.rollout_logprobs_N[:known].double()
        )


def test_the_head_of_a_batch_is_its_first_samples_packed_alone():
    rng = random.Random(1)
    samples = [sample(f"s{i}", n, rng, version=i % 2) for i, n in enumerate(LENGTHS)]
    device = torch.device("cpu")
    whole = pack(samples, range(len(samples)), device)
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].token_ids), i))
    for kept in range(1, len(samples)):
        wanted = pack(samples, order[:kept], device)
        cut = head(whole, len(wanted.versions_N))
        for name, value in vars(wanted).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(cut, name), value), name
        assert cut.num_tokens == wanted.num_tokens
        assert [(b.start, b.end, b.count, b.length) for b in cut.layout.buckets] == [
            (b.start, b.end, b.count, b.length) for b in wanted.layout.buckets
        ]
    assert head(whole, len(whole.versions_N)) is whole


@pytest.mark.heavy
def test_a_version_whose_weights_went_wrong_is_told_from_one_whose_did_not(checkpoint):
    ours = learner(checkpoint, "auto")
    wrong = [1e-2] * len(LENGTHS)
    old = written(ours, wrong)
    ours.step(written(ours))
    newer = written(ours)
    ours.step(written(ours))
    result = ours.step([*old, *newer])
    tokens = [sum(s.num_policy_tokens for s in batch) for batch in (old, newer)]
    compared = result.metrics["parity/tokens"]
    assert tokens[0] < compared < sum(tokens)
    assert result.metrics["parity/mean_abs_dlogp"] == pytest.approx(
        1e-2 * tokens[0] / compared, rel=1e-2
    )


def test_after_the_engine_is_said_to_agree_the_learner_has_no_number_of_its_own(checkpoint):
    result, _ = after_two_steps(checkpoint, "auto")
    numbers = [one for s in result.token_scores for one in s.learner_logprobs]
    share = sum(one is not None for one in numbers) / len(numbers)
    assert share == pytest.approx(result.metrics["parity/share"])
