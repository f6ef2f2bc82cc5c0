"""The expert layer against a plain loop over tokens; the pieces it shares with the dense layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3MoeConfig

from trainer.moe.experts import GroupedExperts, dispatch
from trainer.norm import RMSNorm
from trainer.swiglu import DenseMLP, swiglu

ROUTED, ALL, TOP_K, WIDTH, INNER = 5, 8, 3, 16, 8


def layer(dtype=torch.float32) -> GroupedExperts:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        num_experts=ROUTED, hidden_size=WIDTH, moe_intermediate_size=INNER, initializer_range=0.3
    )
    return GroupedExperts(config).to(dtype)


def inputs(tokens: int, dtype=torch.float32):
    torch.manual_seed(1)
    x = torch.randn(tokens, WIDTH, dtype=dtype, requires_grad=True)
    chosen = torch.stack([torch.randperm(ALL)[:TOP_K] for _ in range(tokens)])
    weights = torch.rand(tokens, TOP_K, requires_grad=True)
    return x, chosen, weights


def plain(experts: GroupedExperts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    out = []
    for t, row in enumerate(chosen.tolist()):
        total = torch.zeros_like(x[t])
        for k, expert in enumerate(row):
            if expert >= ROUTED:
                value = x[t]
            else:
                gate, up = (experts.gate_up_proj[expert] @ x[t]).split(INNER)
                value = experts.down_proj[expert] @ (gate * torch.sigmoid(gate) * up)
            total = total + weights[t, k] * value
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("tokens", [1, 17])
def test_values_and_gradients_are_those_of_a_loop_over_tokens(tokens):
    experts = layer()
    x, chosen, weights = inputs(tokens)
    leaves = (x, weights, experts.gate_up_proj, experts.down_proj)
    wanted = plain(experts, x, chosen, weights)
    probe = torch.randn_like(wanted)
    grads = torch.autograd.grad((wanted * probe).sum(), leaves)
    found = experts(x, chosen, weights)
    assert torch.allclose(found, wanted, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad((found * probe).sum(), leaves), grads, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_tokens_that_chose_zero_experts_alone_pass_through_weighted():
    experts = layer()
    x, _, weights = inputs(6)
    out = experts(x, torch.full((6, TOP_K), ROUTED + 1), weights)
    assert torch.allclose(out, x * weights.sum(1, keepdim=True), atol=1e-6)
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and weights.grad is not None


def test_no_row_of_a_product_is_spent_on_a_zero_expert():
    _, chosen, _ = inputs(40)
    plan = dispatch(chosen, ROUTED)
    assert len(plan.token_S) == len(plan.place_P) == int((chosen < ROUTED).sum())
    counts = plan.ends_N.diff(prepend=torch.zeros(1)).tolist()
    assert counts == [int((chosen == e).sum()) for e in range(ROUTED)]
    experts = chosen.flatten()[plan.pair_S]
    assert experts.tolist() == sorted(experts.tolist())


def test_in_bfloat16_the_result_is_close_and_repeats_to_the_bit():
    experts = layer(torch.bfloat16)
    x, chosen, weights = inputs(64, torch.bfloat16)
    found = experts(x, chosen, weights)
    wanted = plain(layer(), x.float(), chosen, weights)
    assert (found - wanted).norm() / wanted.norm() < 2e-2
    assert torch.equal(found, experts(x, chosen, weights))


@pytest.mark.parametrize(("rows", "width"), [(3, 8), (700, 512)])
def test_the_norm_and_its_gradients_are_those_of_its_formula(rows, width):
    torch.manual_seed(0)
    norm = RMSNorm(width, eps=1e-5)
    nn.init.normal_(norm.weight)
    x = torch.randn(rows, width, requires_grad=True)
    probe = torch.randn(rows, width)
    exact, weight = x.detach().double().requires_grad_(), norm.weight.detach().double()
    weight.requires_grad_()
    wanted = exact / torch.sqrt((exact * exact).mean(-1, keepdim=True) + 1e-5) * weight
    grads = torch.autograd.grad((wanted * probe).sum(), (exact, weight))
    found = norm(x)
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad((found * probe).sum(), (x, norm.weight)), grads, strict=True
    ):
        assert (mine - theirs).norm() / theirs.norm() < 1e-6


def test_the_gated_activation_and_its_gradients_are_those_of_its_formula():
    torch.manual_seed(0)
    inner = torch.randn(900, 400, requires_grad=True)
    weight = torch.rand(900, requires_grad=True)
    probe = torch.randn(900, 200)
    gate, up = inner.split(200, dim=-1)
    wanted = gate * torch.sigmoid(gate) * up * weight[:, None]
    grads = torch.autograd.grad((wanted * probe).sum(), (inner, weight))
    found = swiglu(inner, weight)
    assert torch.allclose(found, wanted, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad((found * probe).sum(), (inner, weight)), grads, strict=True
    ):
        assert (mine - theirs).norm() / theirs.norm() < 1e-6


def test_the_dense_layer_is_its_three_products():
    torch.manual_seed(0)
    mlp = DenseMLP(Qwen3MoeConfig(hidden_size=12, intermediate_size=20))
    x = torch.randn(2, 5, 12)
    wanted = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    assert torch.allclose(mlp(x), wanted, atol=1e-6)


def test_rows_that_fill_up_an_experts_share_change_nothing():
    _, chosen, _ = inputs(40)
    plain, filled = dispatch(chosen, ROUTED), dispatch(chosen, ROUTED, 16)
    assert _counts(filled) == [16 * -(-n // 16) for n in _counts(plain)]
    real = filled.pair_S < chosen.numel()
    assert torch.equal(filled.pair_S[real], plain.pair_S)
    assert torch.equal(filled.token_S[real], plain.token_S)
    assert torch.equal(filled.pair_S[filled.place_P], plain.pair_S[plain.place_P])
    assert (filled.token_S < len(chosen)).all()


def _counts(plan) -> list[int]:
    return plan.ends_N.diff(prepend=torch.zeros(1, dtype=torch.int32)).tolist()
