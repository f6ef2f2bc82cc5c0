"""Every objective under every correction against a plain reading of its equation, in values and in gradients
by autograd through the loops of `objectives_by_hand`.
"""

import math
from dataclasses import replace

import pytest
import torch
from objectives_by_hand import (
    CASES,
    REFERENCES,
    T_MAX,
    WEIGHTS,
    Sequence,
    count,
    drawn,
    geometric_rejection_by_hand,
    scalar,
    tensors,
)
from pydantic import ValidationError
from torch import Tensor

from trainer.config import LossConfig
from trainer.correction import CORRECTIONS, GeometricRejectionConfig, MisConfig, TisConfig
from trainer.loss import LOSSES, objective
from trainer.loss_inputs import LossInputs

PAIRS = [(a, b) for a in REFERENCES for b in WEIGHTS if a != "hispo" or b == "none"]
each_loss = pytest.mark.parametrize("name", REFERENCES)
each_pair = pytest.mark.parametrize(("name", "correction"), PAIRS)


def settings(name: str, correction: str = "none", **changes) -> LossConfig:
    return LossConfig.model_validate(
        {"kind": name, "max_completion_tokens": T_MAX, "correction": correction, **changes}
    )


def gradients(x: LossInputs) -> list[Tensor]:
    """Of the log-probs and of the values, 0 where there is none."""
    assert x.critic is not None
    leaves = (x.learner_logprobs_N, x.critic.values_N)
    return [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves]


def test_every_name_of_the_configuration_has_a_function_and_a_reference():
    assert set(LOSSES) == set(REFERENCES)
    assert set(CORRECTIONS) == set(WEIGHTS)
    for name in LOSSES:
        assert LossConfig(kind=name).kind == name
    for name in CORRECTIONS:
        assert LossConfig(kind="grpo", correction=name).correction == name


@each_pair
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_equation(name, correction, case):
    batch = CASES[case]
    x = tensors(batch)
    loss, _ = objective(x, settings(name, correction))
    loss.backward()
    wanted = REFERENCES[name](batch, WEIGHTS[correction](batch))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10, abs=1e-13)
    for found, column in zip(gradients(x), ("new", "values"), strict=True):
        leaves = [v for s in batch for v in getattr(s, column)]
        by_hand = torch.autograd.grad(wanted, leaves, allow_unused=True, retain_graph=True)
        expected = torch.stack([torch.zeros(()).double() if g is None else g for g in by_hand])
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


def shifted(s: Sequence, token: int, by: float) -> Sequence:
    """The sequence with one new log-prob moved."""
    new = [n.detach() + (by if t == token else 0.0) for t, n in enumerate(s.new)]
    return replace(s, new=new)


@pytest.mark.parametrize(("name", "correction"), [p for p in PAIRS if p[0] != "cispo"])
def test_gradients_are_differences_of_the_equations_values(name, correction):
    """No autograd on the equation's side. The gradient of `cispo` is not that of its value."""
    batch, step = drawn(6, 0.7, (1, 4, 3)), 1e-6
    x = tensors(batch)
    objective(x, settings(name, correction))[0].backward()
    weights = WEIGHTS[correction](batch)

    def value(i: int, token: int, by: float) -> float:
        moved = [*batch[:i], shifted(batch[i], token, by), *batch[i + 1 :]]
        with torch.no_grad():
            return float(REFERENCES[name](moved, weights))

    wanted = [
        (value(i, token, step) - value(i, token, -step)) / (2 * step)
        for i, s in enumerate(batch)
        for token in range(len(s.new))
    ]
    assert gradients(x)[0].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("correction", WEIGHTS)
def test_the_gradient_of_cispo_in_closed_form(correction):
    """-w min(r, 5) A / tokens: clipping ends no token's gradient."""
    batch = CASES["most clipped"]
    x = tensors(batch)
    objective(x, settings("cispo", correction))[0].backward()
    wanted = [
        -w * min(math.exp(new.item() - old), 5.0) * s.advantage / count(batch)
        for s, weights in zip(batch, WEIGHTS[correction](batch), strict=True)
        for new, old, w in zip(s.new, s.old, weights, strict=True)
    ]
    assert gradients(x)[0].tolist() == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", [n for n in REFERENCES if n != "rloo"])
def test_the_cases_tell_each_loss_from_a_ratio_of_one(name):
    """Else the comparison above would pass for a loss that clips and weighs nothing."""
    for case in ("some clipped", "staleness mixed"):
        x = tensors(CASES[case])
        plain = replace(
            x,
            learner_logprobs_N=x.rollout_logprobs_N.clone().requires_grad_(),
            behaviour_logprobs_N=x.rollout_logprobs_N,
            proximal_logprobs_N=x.rollout_logprobs_N,
        )
        there, here = (objective(i, settings(name))[0].item() for i in (x, plain))
        assert there != pytest.approx(here, rel=1e-3)


def test_masks_keep_some_and_leave_out_some():
    batch = [s for case in ("some clipped", "staleness mixed") for s in CASES[case]]
    for correction in ("icepop", "mis", "geometric_rejection"):
        weights = [w for ws in WEIGHTS[correction](batch) for w in ws]
        assert 3 < sum(w == 0 for w in weights) < len(weights) - 3
        _, counts = objective(tensors(batch), settings("grpo", correction))
        assert counts[f"loss/{correction}_masked"].item() == sum(w == 0 for w in weights)
    _, counts = objective(tensors(batch), settings("hispo"))
    whole_samples = sum(w == 0 for ws in geometric_rejection_by_hand(batch) for w in ws)
    assert whole_samples < counts["loss/hispo_masked"].item() < count(batch)


@each_pair
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(name, correction):
    batch, c = CASES["some clipped"], settings(name, correction)
    x = tensors(batch)
    whole, counts = objective(x, c)
    whole.backward()
    parts, part_counts, found = 0.0, dict.fromkeys(counts, 0.0), []
    for cut in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = tensors(batch, cut)
        loss, part_count = objective(part, c)
        loss.backward()
        parts += loss.item()
        found.append(gradients(part))
        part_counts = {k: part_counts[k] + v.item() for k, v in part_count.items()}
    assert parts == pytest.approx(whole.item(), rel=1e-12)
    for index, gradient in enumerate(gradients(x)):
        assert torch.allclose(torch.cat([f[index] for f in found]), gradient, rtol=1e-12)
    assert part_counts == pytest.approx({k: v.item() for k, v in counts.items()})


@each_loss
@pytest.mark.parametrize("shift", [1000.0, -1000.0])
def test_however_far_out_a_ratio_is_value_and_gradient_stay_finite(name, shift):
    batch = [
        replace(s, new=[scalar(o + shift) for o in s.old], advantage=advantage)
        for s, advantage in zip(drawn(8, 0.3), (1.0, -1.0, 0.0) * 2, strict=True)
    ]
    x = tensors(batch)
    narrow = {
        k: v.float() if v.is_floating_point() else v
        for k, v in vars(x).items()
        if isinstance(v, Tensor)
    }
    narrow["learner_logprobs_N"] = narrow["learner_logprobs_N"].detach().requires_grad_()
    x = replace(x, **narrow)
    loss, _ = objective(x, settings(name))
    loss.backward()
    assert math.isfinite(loss.item())
    assert gradients(x)[0].isfinite().all()


def one_token(ratio: float, advantage: float, engine_ratio: float = 1.0) -> LossInputs:
    """A batch of one token with these ratios."""
    s = replace(
        drawn(0, 0.1, (1,))[0],
        new=[scalar(math.log(ratio))],
        old=[0.0],
        proximal=[0.0],
        engine=[-math.log(engine_ratio)],
        advantage=advantage,
    )
    return replace(tensors([s]), max_completion_tokens=1)


ONE = LossConfig(max_completion_tokens=1)  # bounds 0.8 and 1.28, dual clip 3, truncated at 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "gradient"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.2, 1.0, 1.2, 1.2),
        (1.5, 1.0, 1.28, 0.0),  # clipped above
        (9.0, 2.0, 2.56, 0.0),  # and the dual clip does not touch A > 0
        (0.1, 1.0, 0.1, 0.1),  # no lower bound where A > 0
        (1.0, -1.0, -1.0, -1.0),
        (0.9, -1.0, -0.9, -0.9),
        (0.5, -1.0, -0.8, 0.0),  # clipped below
        (2.5, -1.0, -2.5, -2.5),  # no upper bound but the dual clip where A < 0
        (5.0, -1.0, -3.0, 0.0),  # dual clip
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clipping_of_longcat_by_hand(ratio, advantage, gain, gradient):
    x = one_token(ratio, advantage)
    loss, _ = objective(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(gain)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain"),
    [(1.5, 1.0, 1.2), (0.1, 1.0, 0.1), (0.5, -1.0, -0.8), (5.0, -1.0, -5.0)],
)
def test_grpo_has_no_dual_clip(ratio, advantage, gain):
    loss, _ = objective(one_token(ratio, advantage), LossConfig(kind="grpo"))
    assert -loss.item() == pytest.approx(gain)


@pytest.mark.parametrize(("engine_ratio", "weight"), [(0.5, 0.5), (1.0, 1.0), (1.9, 1.9), (7, 2.0)])
def test_longcat_weighs_a_token_by_the_engine_gap_up_to_its_cap(engine_ratio, weight):
    x = one_token(1.1, 1.0, engine_ratio)
    loss, counts = objective(x, ONE)
    loss.backward()
    assert -loss.item() == pytest.approx(1.1 * weight)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(1.1 * weight)
    assert counts["loss/tis_capped"].item() == (engine_ratio > 2)


def test_an_infinite_cap_turns_the_truncation_off():
    off = LossConfig(max_completion_tokens=1, tis=TisConfig(cap=math.inf))
    loss, counts = objective(one_token(1.0, 1.0, 7.0), off)
    assert -loss.item() == pytest.approx(7.0)
    assert counts["loss/tis_capped"].item() == 0


@pytest.mark.parametrize(
    "name", ["longcat", "grpo", "dr_grpo", "dapo", "gspo", "reinforce_pp", "ppo", "decoupled_ppo"]
)
def test_the_clip_counts_are_the_tokens_without_a_gradient(name):
    x = tensors(drawn(0, 1.0, (40, 30, 30, 2, 3)))
    loss, counts = objective(x, settings(name))
    loss.backward()
    ended = x.learner_logprobs_N.grad == 0
    assert 0 < ended.sum() <= len(ended)
    assert counts["loss/clipped_pos"].item() == (ended & (x.advantages_N > 0)).sum()
    assert counts["loss/clipped_neg"].item() == (ended & (x.advantages_N < 0)).sum()


@pytest.mark.parametrize("name", ["cispo", "rloo"])
def test_losses_that_end_no_gradient(name):
    x = tensors(CASES["most clipped"])
    objective(x, settings(name))[0].backward()
    assert (x.learner_logprobs_N.grad != 0).all()


def far_apart() -> LossInputs:
    """Two samples of three tokens, of which the engine's log-probs are 0.3 and -0.3 away at each token."""
    first, second = drawn(0, 0.1, (3, 3))
    first = replace(first, engine=[o - 0.3 for o in first.old])
    return tensors([first, replace(second, engine=[o + 0.3 for o in second.old])])


def test_mis_is_the_products_and_geometric_rejection_the_means():
    """Ratios e^0.9 = 2.46 and e^-0.9 of the products; e^0.3 and e^-0.3 of the means."""
    x = far_apart()
    found, counts = CORRECTIONS["mis"].function(x, MisConfig())
    low = math.exp(-0.9)
    assert found.tolist() == pytest.approx([0, 0, 0, low, low, low])
    assert counts["loss/mis_masked"].item() == 3
    wide = GeometricRejectionConfig(low=0.8, high=2.0)
    found, counts = CORRECTIONS["geometric_rejection"].function(x, wide)
    high = math.exp(0.3)
    assert found.tolist() == pytest.approx([high, high, high, 0, 0, 0])
    assert counts["loss/geometric_rejection_masked"].item() == 3


def test_a_sample_far_from_the_engine_has_the_weight_0_and_never_infinity():
    x = far_apart()
    x = replace(x, rollout_logprobs_N=x.rollout_logprobs_N - 2000.0)
    found, _ = CORRECTIONS["mis"].function(x, MisConfig())
    assert found.tolist() == [0.0] * 6


def test_bounds_of_mis_are_pointed_to_the_correction_that_has_them():
    with pytest.raises(ValidationError, match="that is the correction 'geometric_rejection'"):
        LossConfig.model_validate({"kind": "grpo", "correction": "mis", "mis": {"high": 1.1}})


@pytest.mark.parametrize(("cap", "weight"), [(5.0, 5.0), (2.0, 2.0), (math.inf, math.exp(3))])
def test_decoupled_ppo_caps_the_weight_of_a_stale_token(cap, weight):
    s = replace(drawn(0, 0.1, (1,))[0], new=[scalar(-1.0)], proximal=[-1.0], old=[-4.0])
    x = tensors([replace(s, advantage=1.0)])
    c = settings("decoupled_ppo", decoupled_ppo={"max_weight": cap})
    loss, counts = objective(x, c)
    loss.backward()
    assert -loss.item() == pytest.approx(weight)
    assert -x.learner_logprobs_N.grad.item() == pytest.approx(weight)
    assert counts["loss/decoupled_capped"].item() == (cap < 20)
