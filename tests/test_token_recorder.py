"""What an update records of each token, against transformers' own model."""

import math
from dataclasses import replace

import pytest
import torch
from test_learner import learner, samples, with_rollout_logprobs
from transformers import AutoModelForCausalLM

from trainer.config import LossConfig


def stock(folder, sample) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of the policy's tokens, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([sample.token_ids])
        every = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    wanted = [i for i, policy in enumerate(sample.loss_mask[1:]) if policy]
    entropies = -(every.exp() * every).sum(-1)
    return [every[i, ids[0, i + 1]].item() for i in wanted], entropies[wanted].tolist()


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["longcat_flash", "qwen3_moe"])
def test_each_policy_token_has_its_numbers_in_order(checkpoints, family):
    batch = samples()
    one = learner(checkpoints[family])
    result = one.step(batch)
    assert [s.id for s in result.token_scores] == [s.id for s in batch]
    for sample, scores in zip(batch, result.token_scores, strict=True):
        logprobs, entropies = stock(checkpoints[family], sample)
        assert scores.learner_logprobs == pytest.approx(logprobs, abs=1e-4)
        assert scores.entropies == pytest.approx(entropies, abs=1e-4)
        policy = [a for a, m in zip(sample.advantages, sample.loss_mask, strict=True) if m]
        assert scores.advantages == policy and len(policy) == sample.num_policy_tokens


def test_a_token_of_an_earlier_version_has_that_versions_log_prob_or_none(checkpoint):
    batch = samples()
    again = LossConfig(max_completion_tokens=20, behaviour="learner")
    keeps = learner(checkpoint, keep_versions=1, loss=again)
    first = keeps.logprobs(batch)
    keeps.step(batch)
    result = keeps.step(with_rollout_logprobs(batch, first, version=0))
    for scores, logprobs in zip(result.token_scores, first, strict=True):
        assert scores.learner_logprobs == pytest.approx(logprobs, abs=1e-5)
    loss = LossConfig(max_completion_tokens=20, behaviour="engine", correction="none")
    forgets = learner(checkpoint, loss=loss)
    result = forgets.step(batch)
    assert not any(None in s.learner_logprobs for s in result.token_scores)
    result = forgets.step(with_rollout_logprobs(batch, first, version=0))
    for scores in result.token_scores:
        assert set(scores.learner_logprobs) == {None}
        assert all(math.isfinite(e) for e in scores.entropies)


def test_the_advantages_are_those_of_the_objective(checkpoint):
    """REINFORCE++ normalises over the batch in the learner."""
    batch = [replace(s, reward=float(i)) for i, s in enumerate(samples())]
    one = learner(checkpoint, advantage="reinforce_pp")
    result = one.step(batch)
    means = [scores.advantages[0] for scores in result.token_scores]
    assert means == sorted(means) and means[0] < 0 < means[-1]


def test_without_records_the_update_is_the_same(checkpoint):
    batch = samples()
    with_them, without = (learner(checkpoint, record_tokens=r) for r in (True, False))
    results = [one.step(batch) for one in (with_them, without)]
    metrics = [
        {k: v for k, v in result.metrics.items() if "seconds" not in k} for result in results
    ]
    assert metrics[0] == metrics[1] and results[1].token_scores == []


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["longcat_flash", "qwen3_moe"])
def test_the_experts_of_a_token_are_those_that_predicted_it(checkpoints, family):
    """Against the routers of transformers' own model, where its first layer with one chooses."""
    batch = samples()
    one = learner(checkpoints[family])
    result = one.step(batch)
    model = AutoModelForCausalLM.from_pretrained(checkpoints[family], dtype=torch.float32)
    seen: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(("router", "gate")) and "mlp" in name:
            module.register_forward_hook(lambda module, given, made: seen.append(_chosen(made)))
    for sample, scores in zip(batch, result.token_scores, strict=True):
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([sample.token_ids]), use_cache=False)
        assert len(scores.experts) == sample.num_policy_tokens
        assert len(seen) == len(scores.experts[0]) > 1
        wanted = [i for i, policy in enumerate(sample.loss_mask[1:]) if policy]
        for layer, chosen in enumerate(seen):
            mine = [sorted(token[layer]) for token in scores.experts]
            assert mine == [sorted(chosen[i].tolist()) for i in wanted]


def _chosen(made: object) -> torch.Tensor:
    """A router's answer holds the chosen experts as its integers."""
    parts = made if isinstance(made, tuple) else (made,)
    return next(p for p in parts if isinstance(p, torch.Tensor) and not p.is_floating_point())
