"""KL to a reference and the entropy bonus: estimators against expectations, gradients against other code, and
both in the learner."""

import math
from dataclasses import replace
from itertools import product
from statistics import fmean

import pytest
import torch
from objectives_by_hand import CASES, tensors
from pydantic import ValidationError
from test_learner import learner, samples, stock_logprobs, with_rollout_logprobs
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.config import LearnerConfig, LoraConfig, LossConfig, OptimConfig
from trainer.kl import ESTIMATORS, kl_to_reference, penalised
from trainer.loss import LOSSES, objective
from trainer.loss_inputs import LossInputs
from trainer.objective_config import KlConfig
from trainer.sample import TrainSample
from trainer.scorer import LogitShape, _TokenLogprobs

VOCABULARY = 7
K1_REWARD = {"weight": 0.5, "estimator": "k1", "place": "reward"}


def distributions(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of a policy (with gradient, from its logits), a reference and a behaviour policy."""
    draw = torch.Generator().manual_seed(seed)
    logits = [torch.randn(VOCABULARY, generator=draw, dtype=torch.float64) for _ in range(3)]
    logits[0].requires_grad_()
    policy, reference, behaviour = (one.log_softmax(-1) for one in logits)
    return policy, reference, behaviour


def exact(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two distributions by their log-probs, from torch's own."""
    kl = torch.distributions.kl_divergence
    return kl(torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_have_the_divergence_as_their_expectation(name):
    policy, reference, _ = distributions()
    expected = (policy.exp() * ESTIMATORS[name](reference - policy)).sum()
    assert expected.item() == pytest.approx(exact(policy, reference).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_means_over_drawn_tokens_are_near_the_expectation(name):
    policy, reference, _ = (one.detach() for one in distributions())
    drawn = torch.multinomial(
        policy.exp(), 200_000, True, generator=torch.Generator().manual_seed(1)
    )
    values = ESTIMATORS[name]((reference - policy)[drawn])
    p = policy.exp()
    d = reference - policy
    wanted = {
        "k1": -(p * d).sum(),
        "k2": (p * d * d).sum() / 2,
        "k3": (p * (d.exp() - 1 - d)).sum(),
    }
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - wanted[name]) < 4 * error
    assert name == "k1" or (values >= 0).all()


def test_k2_is_near_the_divergence_where_the_policies_are_near():
    policy, reference, _ = (one.detach() for one in distributions())
    near = (0.97 * policy + 0.03 * reference).log_softmax(-1)
    expected = (policy.exp() * ESTIMATORS["k2"](near - policy)).sum()
    assert expected.item() == pytest.approx(exact(policy, near).item(), rel=0.05)


def inputs(policy: Tensor, reference: Tensor, behaviour: Tensor) -> LossInputs:
    """One token of each kind, as a micro-batch."""
    count = len(policy)
    ones = torch.ones(count, dtype=torch.float64)
    return LossInputs(
        learner_logprobs_N=policy,
        behaviour_logprobs_N=behaviour,
        proximal_logprobs_N=behaviour,
        rollout_logprobs_N=behaviour,
        advantages_N=ones,
        sample_N=torch.arange(count),
        sample_tokens_N=ones,
        num_samples=count,
        num_tokens=count,
        max_completion_tokens=1,
        reference_logprobs_N=reference,
    )


def expected_gradient(seed: int, c: KlConfig, *, stale: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The expected gradient of the estimate over the sampler's tokens, by the policy's log-probs as functions
    of its logits; and those of KL(policy || reference) and of KL(reference || policy)."""
    draw = torch.Generator().manual_seed(seed)
    logits, reference, behaviour = (
        torch.randn(VOCABULARY, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    logits.requires_grad_()
    reference, behaviour = reference.log_softmax(-1), behaviour.log_softmax(-1)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    policy = logits.log_softmax(-1)
    sampler = behaviour if stale else policy.detach()
    estimate = (sampler.exp() * kl_to_reference(inputs(policy, reference, sampler), c)).sum()
    found = gradient(estimate)
    forth = gradient(exact(logits.log_softmax(-1), reference))
    back = gradient(exact(reference, logits.log_softmax(-1)))
    return found, forth, back


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_with_importance_the_expected_gradient_is_that_of_the_divergence(estimator, stale):
    c = KlConfig(weight=1, estimator=estimator, importance=True)
    found, forth, _ = expected_gradient(3, c, stale=stale)
    assert torch.allclose(found, forth, rtol=1e-10, atol=1e-12)


def test_on_policy_k2_has_its_gradient_and_k3_that_of_the_other_direction():
    found, forth, back = expected_gradient(4, KlConfig(weight=1, estimator="k2"), stale=False)
    assert torch.allclose(found, forth, rtol=1e-10, atol=1e-12)
    found, forth, back = expected_gradient(4, KlConfig(weight=1, estimator="k3"), stale=False)
    assert torch.allclose(found, back, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found, forth, rtol=0.1)


def test_the_expected_gradient_of_k1_alone_is_0_so_it_is_refused():
    c = KlConfig.model_construct(weight=1, estimator="k1", importance=False)
    found, _, _ = expected_gradient(5, c, stale=False)
    assert found.abs().max() < 1e-12
    with pytest.raises(ValidationError, match="has a gradient whose mean is 0"):
        KlConfig(weight=1, estimator="k1")


def test_in_the_reward_the_expected_gradient_is_that_of_the_sequences_divergence():
    """All sequences of two tokens from a vocabulary of three, weighed by their probability."""
    draw = torch.Generator().manual_seed(6)
    first, later = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (1, 3))
    first.requires_grad_()
    later.requires_grad_()
    reference = [
        torch.randn(n, 3, generator=draw, dtype=torch.float64).log_softmax(-1) for n in (1, 3)
    ]
    p = [first.log_softmax(-1), later.log_softmax(-1)]
    rows = [(p[0][0, a], p[1][a, b]) for a, b in product(range(3), repeat=2)]
    references = [(reference[0][0, a], reference[1][a, b]) for a, b in product(range(3), repeat=2)]
    kl = [
        [(mine - theirs).item() for mine, theirs in zip(*both, strict=True)]
        for both in zip(rows, references, strict=True)
    ]
    empty = TrainSample("", "e", (0, 1, 2), (False, True, True), (0.0,) * 3, (0.0,) * 3, (-1, 0, 0))
    found = penalised([empty] * 9, kl, 0.7)
    surrogate = sum(
        (sum(row).detach().exp() * (a * row[0] + b * row[1]))
        for row, (_, a, b) in zip(rows, (s.advantages for s in found), strict=True)
    )
    divergence = sum(
        sum(row).exp() * (sum(row) - sum(theirs))
        for row, theirs in zip(rows, references, strict=True)
    )
    mine = torch.autograd.grad(surrogate, (first, later), retain_graph=True)
    wanted = torch.autograd.grad(-0.7 * divergence, (first, later))
    for a, b in zip(mine, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def averaged_by_hand(name: str, batch, values: list[list[float]]) -> float:
    """A value per token, averaged as the loss of this name averages its terms."""
    tokens = sum(map(len, values))
    if name in ("grpo", "gspo"):
        return fmean(fmean(one) for one in values)
    if name in ("longcat", "dr_grpo", "hispo"):
        return sum(map(sum, values)) / (len(batch) * 50)
    return sum(map(sum, values)) / (len(batch) if name == "rloo" else tokens)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_kl_and_the_entropy_are_averaged_as_the_losss_own_terms(name):
    batch = CASES["some clipped"]
    x = tensors(batch)
    draw = torch.Generator().manual_seed(7)
    count = x.num_tokens
    reference_N, entropy_N = (
        -3 * torch.rand(count, generator=draw, dtype=torch.float64) for _ in range(2)
    )
    x = replace(x, reference_logprobs_N=reference_N, entropy_N=-entropy_N)
    plain = LossConfig(kind=name, correction="none", max_completion_tokens=50)
    kl = LossConfig.model_validate({**plain.model_dump(), "kl": {"weight": 0.3, "estimator": "k3"}})
    bonus = LossConfig.model_validate({**plain.model_dump(), "entropy_weight": 0.2})
    usual, _ = objective(x, plain)
    left = iter(zip(reference_N.tolist(), entropy_N.tolist(), strict=True))
    kls, entropies = [], []
    for s in batch:
        pairs = [next(left) for _ in s.new]
        gaps = [r - n.item() for n, (r, _) in zip(s.new, pairs, strict=True)]
        kls.append([math.exp(d) - 1 - d for d in gaps])
        entropies.append([-e for _, e in pairs])
    found, counts = objective(x, kl)
    wanted = 0.3 * averaged_by_hand(name, batch, kls)
    assert (found - usual).item() == pytest.approx(wanted, rel=1e-10)
    assert counts["loss/kl_reference"].item() == pytest.approx(sum(map(sum, kls)), rel=1e-10)
    found, _ = objective(x, bonus)
    assert (usual - found).item() == pytest.approx(
        0.2 * averaged_by_hand(name, batch, entropies), rel=1e-10
    )


@pytest.mark.parametrize(
    "shape", [LogitShape(1.0), LogitShape(0.7, 1.5), LogitShape(0.8, 1.2, 4.0)]
)
def test_gradients_of_logprob_and_entropy_are_those_of_autograd(shape):
    draw = torch.Generator().manual_seed(8)
    hidden = torch.randn(300, 16, generator=draw).requires_grad_()
    head = torch.randn(40, 16, generator=draw).requires_grad_()
    target = torch.randint(40, (300,), generator=draw)
    by_logprob, by_entropy = torch.randn(2, 300, generator=draw)
    logprob, entropy = _TokenLogprobs.apply(hidden, head, target, shape)
    found = torch.autograd.grad((logprob * by_logprob + entropy * by_entropy).sum(), (hidden, head))
    logits = (hidden @ head.t()) * shape.scale
    if shape.softcap:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    every = (logits / shape.temperature).log_softmax(-1)
    own = every.gather(1, target[:, None])[:, 0]
    of = -(every.exp() * every).sum(-1)
    total = (own * by_logprob + of * by_entropy).sum()
    wanted = torch.autograd.grad(total, (hidden, head), retain_graph=True)
    assert torch.allclose(entropy, of, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 2e-5 * theirs.norm()
    alone = torch.autograd.grad(
        _TokenLogprobs.apply(hidden, head, target, shape)[1].sum(), (hidden, head)
    )
    wanted = torch.autograd.grad(-(every.exp() * every).sum(), (hidden, head))
    for mine, theirs in zip(alone, wanted, strict=True):
        assert (mine - theirs).norm() <= 2e-5 * theirs.norm()


def with_kl(checkpoint, kl: dict, **changes):
    loss = LossConfig.model_validate({"kind": "dapo", "behaviour": "learner", "kl": kl})
    settings = {"loss": loss, "optim": OptimConfig(lr=1e-3), "keep_versions": 1}
    return learner(checkpoint, **{**settings, **changes})


def fresh(ours) -> list[TrainSample]:
    return with_rollout_logprobs(samples(), ours.logprobs(samples()), ours.version)


def k3_of(now, reference) -> float:
    """The mean over tokens of log-probs by sample."""
    gaps = [
        r - n
        for mine, theirs in zip(now, reference, strict=True)
        for n, r in zip(mine, theirs, strict=True)
    ]
    return fmean(math.exp(d) - 1 - d for d in gaps)


@pytest.mark.heavy
def test_the_reference_is_the_start_whatever_the_version(checkpoint):
    ours = with_kl(checkpoint, {"weight": 0.1, "estimator": "k3"})
    start = ours.logprobs(samples())
    assert ours.step(fresh(ours)).metrics["loss/kl_reference"] == pytest.approx(0, abs=1e-9)
    for _ in range(2):
        wanted = k3_of(ours.logprobs(samples()), start)
        assert wanted > 1e-4
        assert ours.step(fresh(ours)).metrics["loss/kl_reference"] == pytest.approx(
            wanted, rel=1e-3
        )


@pytest.mark.heavy
def test_the_reference_may_be_a_folder_and_one_of_another_shape_is_refused(
    checkpoint, checkpoints, tmp_path
):
    other = learner(checkpoint, optim=OptimConfig(lr=1e-3))
    other.step(fresh(other))
    other.save(tmp_path / "other")
    ours = with_kl(
        checkpoint, {"weight": 0.1, "estimator": "k3", "reference": str(tmp_path / "other")}
    )
    wanted = k3_of(ours.logprobs(samples()), other.logprobs(samples()))
    found = ours.step(fresh(ours)).metrics["loss/kl_reference"]
    assert wanted > 1e-4 and found == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(ValueError, match="is of another architecture than the one that is trained"):
        with_kl(
            checkpoint,
            {"weight": 0.1, "estimator": "k3", "reference": str(checkpoints["qwen3_moe"])},
        )


@pytest.mark.heavy
def test_the_reference_moves_every_so_many_versions_also_after_a_resume(checkpoint, tmp_path):
    kl = {"weight": 0.1, "estimator": "k3", "every": 2}
    ours = with_kl(checkpoint, kl, keep_versions=0)
    told = {}
    for version in range(5):
        if version == 3:
            ours.save_state(tmp_path / "step_3")
            ours.wait_saved()
            ours = with_kl(checkpoint, kl, keep_versions=0)
            ours.load_state(tmp_path / "step_3")
        told[version] = ours.logprobs(samples())
        found = ours.step(fresh(ours)).metrics["loss/kl_reference"]
        wanted = k3_of(told[version], told[version // 2 * 2])
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-9)
        assert version % 2 == 0 or found > 1e-4
        assert sorted(ours.past_weights) in ([], [ours.version // 2 * 2])


def test_in_the_reward_each_token_pays_for_the_kl_from_it_on(checkpoint):
    ours = with_kl(checkpoint, K1_REWARD)
    start = ours.logprobs(samples())
    ours.step(fresh(ours))
    now = ours.logprobs(samples())
    batch = fresh(ours)
    result = ours.step(batch)
    to_go = [
        [sum(n - r for n, r in list(zip(mine, theirs, strict=True))[t:]) for t in range(len(mine))]
        for mine, theirs in zip(now, start, strict=True)
    ]
    mean = fmean(k for one in to_go for k in one)
    for s, scores, kls in zip(batch, result.token_scores, to_go, strict=True):
        own = max(s.advantages, key=abs)
        wanted = [own - 0.5 * (k - mean) for k in kls]
        assert scores.advantages == pytest.approx(wanted, abs=1e-4)
    assert result.metrics["loss/kl_reference"] != 0


@pytest.mark.heavy
def test_a_kl_holds_the_policy_near_its_reference(checkpoint):
    found = []
    for weight in (1e-9, 100.0):
        ours = with_kl(
            checkpoint, {"weight": weight, "estimator": "k2"}, optim=OptimConfig(lr=3e-4)
        )
        for _ in range(4):
            batch = fresh(ours)
            metrics = ours.step(batch).metrics
        found.append(metrics["loss/kl_reference"])
    assert found[1] < 0.8 * found[0]


@pytest.mark.heavy
def test_an_entropy_bonus_raises_the_entropy(checkpoint):
    found = []
    for weight in (0.0, 10.0):
        loss = LossConfig(kind="dapo", entropy_weight=weight)
        ours = learner(checkpoint, loss=loss, optim=OptimConfig(lr=3e-4))
        ours.step(fresh(ours))
        found.append(ours.step(fresh(ours)).metrics["loss/entropy"])
    assert found[1] > found[0]


@pytest.mark.heavy
def test_the_gradient_of_a_whole_step_is_that_of_transformers_and_autograd(checkpoint):
    """KL and entropy bonus in one loss, against full logits of the stock model."""
    loss = LossConfig.model_validate(
        {"kind": "dapo", "entropy_weight": 0.3, "kl": {"weight": 2.0, "estimator": "k3"}}
    )
    ours = learner(checkpoint, loss=loss, optim=OptimConfig(lr=1e-3))
    ours.step(fresh(ours))
    batch = fresh(ours)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    weights = {n.removeprefix("model."): p for n, p in ours.scorer.state_dict().items()}
    for name, parameter in stock.named_parameters():
        parameter.data[: len(weights[name])] = weights[name]
    tokens = sum(s.num_policy_tokens for s in batch)
    for s in batch:
        ids = torch.tensor([s.token_ids])
        every = stock(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        every = every[torch.tensor(s.loss_mask[1:])]
        now = stock_logprobs(stock, s)
        with torch.no_grad():
            theirs = stock_logprobs(reference, s)
        gain = (now - now.detach()).exp() * max(s.advantages, key=abs)
        gap = theirs - now
        kl = gap.exp() - 1 - gap
        entropy = -(every.exp() * every).sum(-1)
        ((-gain + 2.0 * kl - 0.3 * entropy).sum() / tokens).backward()
    squares = sum(p.grad.square().sum() for p in stock.parameters() if p.grad is not None)
    found = ours.step(batch).metrics["optim/grad_norm"]
    assert found == pytest.approx(squares.sqrt().item(), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"loss": {"kl": {"weight": 1, "estimator": "k4"}}}, "'k1', 'k2' or 'k3'"),
        ({"loss": {"kl": {**K1_REWARD, "importance": True}}}, "importance is of a KL in the loss"),
        (
            {"loss": {"kl": {"weight": 1, "estimator": "k2", "reference": "x", "every": 3}}},
            "name two references",
        ),
        ({"loss": {"kind": "ppo", "kl": K1_REWARD}}, 'set place = "loss"'),
        (
            {
                "loss": {"kl": {"weight": 1, "estimator": "k2", "reference": "x"}},
                "lora": LoraConfig(rank=2, alpha=2, targets=("o_proj",)),
            },
            "is a whole policy, and with .lora.",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        LearnerConfig.model_validate(given)
