"""Routers: the engine's choices repeated, load statistics, balance losses, the bias controller."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import sample
from torch import Tensor

from trainer.batch import pack
from trainer.config import LearnerConfig, LossConfig, OptimConfig, RouterConfig
from trainer.learner import Learner
from trainer.moe.balance import (
    BiasController,
    Experts,
    RouterWatch,
    balance_loss,
    experts_of,
    hidden_z_loss,
    load_factors,
    loads,
)
from trainer.moe.router import RouterRecord
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.scorer import Scorer

CPU = torch.device("cpu")
LENGTHS = (5, 31, 12, 40)
EXPERTS = Experts(computing=6, zero=2, per_token=3, wanted=2.4)


def learner(folder, *, keep_versions: int = 0, tokens: int = 64, **router) -> Learner:
    config = LearnerConfig(
        micro_batch_tokens=tokens,
        threads=1,
        loss=LossConfig(max_completion_tokens=20),
        optim=OptimConfig(lr=1e-3),
        router=RouterConfig(**router),
    )
    return Learner(folder, config, temperature=1.0, keep_versions=keep_versions)


def routed(layers: int, top_k: int, experts: int, *, seed: int = 0) -> list[TrainSample]:
    """Samples with an engine's choices drawn by lot; the last token's is unknown."""
    rng, draw = random.Random(3), np.random.default_rng(seed)
    found = []
    for i, n in enumerate(LENGTHS):
        choices = draw.permuted(
            np.tile(np.arange(experts, dtype=np.uint8), (n, layers, 1)), axis=-1
        )
        choices = choices[..., :top_k].copy()
        choices[-1] = 255
        found.append(replace(sample(f"s{i}", n, rng, version=0), routing=choices))
    return found


def sizes(model) -> tuple[int, int, int]:
    experts = experts_of(model.config, None)
    return len(model.model.layers), experts.per_token, experts.total


def test_choices_that_the_engine_made_are_repeated_and_the_others_are_the_routers_own(
    family_checkpoint,
):
    model = load_policy(family_checkpoint, torch.float32)
    scorer = Scorer(model, 1.0)
    scorer.routing_record.replay = True
    several = routed(*sizes(model))
    batch = pack(several, range(len(several)), CPU)
    assert batch.routing_TLK is not None
    with torch.no_grad():
        scorer(batch)
    for layer, used in scorer.routing_record.used_TK.items():
        asked = batch.routing_TLK[:, layer]
        known = (asked >= 0).all(-1)
        assert torch.equal(used[known], asked[known])
        assert (~known).sum() == len(LENGTHS), "the last token of each sample"
        assert torch.equal(used[~known], scorer.routing_record.own_TK[layer][~known])


def test_repeating_its_own_choices_changes_nothing_and_repeating_others_does(family_checkpoint):
    plain = learner(family_checkpoint)
    several = routed(*sizes(plain.model))
    bare = [replace(s, routing=None) for s in several]
    wanted = plain.logprobs(bare)
    forced = learner(family_checkpoint, replay=True)
    assert forced.logprobs(several) != wanted

    batch = pack(bare, range(len(bare)), CPU)
    with torch.no_grad():
        plain.scorer(batch)
    own_TLK = torch.stack(
        [plain.scorer.routing_record.own_TK[layer] for layer in range(len(plain.scorer.routers))], 1
    )
    order = sorted(range(len(bare)), key=lambda i: -LENGTHS[i])
    told = list(bare)
    for i, choices in zip(order, own_TLK.split([LENGTHS[i] for i in order]), strict=True):
        told[i] = replace(bare[i], routing=choices.numpy().astype(np.uint8))
    for mine, theirs in zip(forced.logprobs(told), wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_the_gradient_reaches_the_router_through_repeated_choices(family_checkpoint):
    model = load_policy(family_checkpoint, torch.float32)
    scorer = Scorer(model, 1.0)
    scorer.routing_record.replay = True
    several = routed(*sizes(model))
    scorer(pack(several, range(len(several)), CPU)).logprobs_N.sum().backward()
    for router in scorer.routers:
        [weight] = router.parameters()
        assert weight.grad is not None and weight.grad.abs().max() > 0


def test_routing_of_another_model_is_refused(checkpoint):
    layers, top_k, total = sizes(load_policy(checkpoint, torch.float32))
    with pytest.raises(
        ValueError, match=rf"{layers + 1} layers and {top_k} experts per token, this"
    ):
        learner(checkpoint, replay=True).logprobs(routed(layers + 1, top_k, total))


def test_a_step_says_how_often_learner_and_engine_agree(checkpoint):
    for replay in (False, True):
        ours = learner(checkpoint, replay=replay)
        metrics = ours.step(routed(*sizes(ours.model))).metrics
        assert metrics["router/agreement_own"] < 0.5
        assert (metrics["router/agreement"] == 1.0) == replay


def random_scores(tokens: int):
    torch.manual_seed(0)
    scores = torch.randn(tokens, EXPERTS.total).softmax(-1).requires_grad_()
    return scores, scores.detach().topk(EXPERTS.per_token, dim=-1).indices


def balance_of(scores: Tensor, chosen: Tensor, groups: int) -> Tensor:
    counts = torch.bincount(chosen.flatten(), minlength=EXPERTS.total)
    return balance_loss(scores, load_factors(counts, len(scores), EXPERTS, groups))


def test_the_balance_loss_is_its_formula_and_its_gradient_goes_through_the_probabilities():
    tokens, groups = 50, 3
    scores, chosen = random_scores(tokens)
    wanted, per_expert = 0.0, torch.zeros(EXPERTS.total)
    size = EXPERTS.computing // groups
    for j in range(groups + 1):
        inside = range(j * size, (j + 1) * size) if j < groups else range(6, 8)
        hits = sum(1 for row in chosen.tolist() for e in row if e in inside)
        f = hits * groups / (2.4 * tokens) if j < groups else hits / ((3 - 2.4) * tokens)
        wanted += f * sum(scores[t, e].item() for t in range(tokens) for e in inside) / tokens
        per_expert[list(inside)] = f / tokens
    found = balance_of(scores, chosen, groups)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert torch.allclose(scores.grad, per_expert.expand(tokens, -1), rtol=1e-5)


def test_the_balance_loss_is_one_where_the_load_is_as_wanted():
    """12 of 15 choices on 6 experts, 3 on 2 zero experts, over 5 tokens; any probabilities."""
    chosen = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 1, 6], [2, 3, 7], [4, 5, 6]])
    scores = torch.rand(5, 8).softmax(-1)
    assert balance_of(scores, chosen, 3).item() == pytest.approx(1.0)


def test_the_z_loss_is_its_formula():
    hidden = torch.randn(4, 6)
    wanted = sum(np.log(np.exp(np.abs(row)).sum()) ** 2 for row in hidden.numpy())
    assert hidden_z_loss(hidden).item() == pytest.approx(wanted, rel=1e-5)


def test_the_controller_moves_the_bias_by_its_formula_and_leaves_zero_experts_alone(checkpoint):
    ours = learner(checkpoint, bias_rate=0.1, bias_decay_steps=4, experts_per_token=2.5)
    before = [r.e_score_correction_bias.tolist() for r in ours.scorer.routers]
    counts = torch.tensor([[10.0, 2, 3, 4, 5, 6, 7, 8, 5, 5, 5, 0]]).repeat(2, 1)
    ours.steering.biases.update(counts, 1)
    for router, was in zip(ours.scorer.routers, before, strict=True):
        for i, value in enumerate(router.e_score_correction_bias.tolist()):
            moved = 0.1 * 0.75 * (2.5 / 3 / 8 - counts[0, i].item() / 60) if i < 8 else 0.0
            assert value - was[i] == pytest.approx(moved, abs=1e-7)


def test_the_controller_brings_the_load_to_what_is_wanted(checkpoint):
    """On scores that prefer zero experts and one other, drawn anew each time."""
    ours = learner(checkpoint, bias_rate=0.5, experts_per_token=2.4)
    experts = ours.steering.experts
    torch.manual_seed(0)
    liking = torch.tensor([1.5] + [0.0] * 7 + [1.0] * 4)
    [router, _] = ours.scorer.routers
    controller = BiasController([router], experts, RouterConfig(bias_rate=0.5))
    for _ in range(300):
        scores = (torch.randn(400, experts.total) + liking).softmax(-1)
        chosen = router.get_topk_indices(scores)
        counts = torch.bincount(chosen.flatten(), minlength=experts.total).float()
        controller.update(counts[None], 0)
    computing = counts[:8].sum().item() / 400
    assert computing == pytest.approx(2.4, rel=0.05)
    assert counts[:8].max() / counts[:8].mean() < 1.3


def test_a_router_without_bias_has_no_controller(request):
    folder = request.getfixturevalue("checkpoints")["qwen3_moe"]
    with pytest.raises(ValueError, match=r"learner.router.bias_rate: the routers of this model"):
        learner(folder, bias_rate=0.1)


def test_more_experts_per_token_than_are_chosen_are_refused(checkpoint):
    with pytest.raises(ValueError, match=r"learner.router.experts_per_token \(4\) is above the 3"):
        learner(checkpoint, experts_per_token=4)


def test_a_step_moves_the_bias_by_its_own_loads_and_past_versions_keep_theirs(checkpoint):
    ours = learner(checkpoint, keep_versions=1, bias_rate=0.2)
    samples = [sample(f"s{i}", n, random.Random(i), version=0) for i, n in enumerate(LENGTHS)]
    before = [r.e_score_correction_bias.clone() for r in ours.scorer.routers]
    counts = torch.zeros(2, ours.steering.experts.total)
    with torch.no_grad():
        ours.scorer(pack(samples, range(len(samples)), CPU))
    for layer, used in ours.scorer.routing_record.used_TK.items():
        counts[layer] = torch.bincount(used.flatten(), minlength=ours.steering.experts.total)
    ours.step(samples)
    x = ours.steering.experts
    names = [name for name in ours.past_weights[0] if name.endswith("e_score_correction_bias")]
    for router, name, was, load in zip(ours.scorer.routers, names, before, counts, strict=True):
        moved = 0.2 * (x.wanted / 3 / 8 - load[:8] / load.sum())
        assert torch.allclose(router.e_score_correction_bias[:8] - was[:8], moved, atol=1e-6)
        assert torch.equal(ours.past_weights[0][name], was)


def test_load_and_gradients_are_watched_as_defined():
    config = RouterConfig(balance_weight=0.5, balance_groups=2)
    watch = RouterWatch(1, EXPERTS, config)
    scores, chosen = random_scores(40)
    record = RouterRecord()
    record.decide(0, scores, chosen)
    watch.plan(loads(record, EXPERTS.total), 40)
    weight = torch.randn(40, EXPERTS.total)
    policy = (scores * weight).sum()
    (policy + watch.note(record, 0.25)).backward()
    found = watch.metrics()
    load = torch.bincount(chosen.flatten(), minlength=8).float()
    assert found["router/load_violation"] == pytest.approx(
        (load[:6].max() / load[:6].mean() - 1).item()
    )
    assert found["router/idle_experts"] == (load[:6] < 0.02 * load[:6].mean()).sum()
    [shares] = watch.loads()
    assert shares == pytest.approx((load / 40).tolist(), abs=1e-4)
    assert found["router/ffn_experts"] == pytest.approx(load[:6].sum().item() / 40)
    assert found["router/zero_share"] == pytest.approx(load[6:].sum().item() / 120)
    again, _ = random_scores(40)
    balance = torch.autograd.grad(0.125 * balance_of(again, chosen, 2), again)[0].sum(0)
    ratio = balance.norm() / weight.sum(0).norm()
    assert found["router/gradient_ratio"] == pytest.approx(ratio.item(), rel=1e-4)


def test_the_balance_and_z_losses_reach_the_weights_but_not_the_reported_loss(checkpoint):
    samples = [sample(f"s{i}", n, random.Random(i), version=0) for i, n in enumerate(LENGTHS)]
    found = {}
    for name, router in (
        ("plain", {}),
        ("balance", {"balance_weight": 10.0}),
        ("z", {"z_weight": 1.0}),
    ):
        found[name] = learner(checkpoint, **router).step(samples).metrics
    for name in ("balance", "z"):
        assert found[name]["loss/loss"] == pytest.approx(found["plain"]["loss/loss"], rel=1e-5)
        assert found[name]["optim/grad_norm"] > 1.01 * found["plain"]["optim/grad_norm"]


STEERED = {"balance_weight": 1.0, "balance_groups": 2, "z_weight": 0.01}


@pytest.mark.heavy
def test_three_steps_are_the_same_however_the_batch_is_cut(family_checkpoint):
    """In an update and in imitation: the balance loss counts the whole batch."""
    lengths = (40, 8, 33, 12, 25, 19)
    found, plain = [], []
    for tokens, weights in ((40, STEERED), (64, STEERED), (400, STEERED), (400, {})):
        ours = learner(family_checkpoint, tokens=tokens, **weights)
        before = {n: w.clone() for n, w in ours.snapshot(torch.float32).items()}
        for version in range(3):
            batch = [
                sample(f"s{i}", n, random.Random(i), version=version) for i, n in enumerate(lengths)
            ]
            ours.step(batch) if version < 2 else ours.sft_step(batch)
        after = ours.snapshot(torch.float32)
        (found if weights else plain).append(
            torch.cat([(after[n] - before[n]).flatten() for n in sorted(after)])
        )
    moved = found[0].norm()
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-3 * moved
    assert (plain[0] - found[0]).norm() > 0.1 * moved, "the losses have an effect"


@pytest.mark.heavy
def test_imitation_moves_the_bias_too(checkpoint):
    """A policy comes to reinforcement learning with the load that it is to keep."""
    ours = learner(checkpoint, bias_rate=0.5, experts_per_token=1.2)
    samples = [sample(f"s{i}", n, random.Random(i), version=0) for i, n in enumerate(LENGTHS)]

    def load() -> float:
        with torch.no_grad():
            ours.scorer(pack(samples, range(len(samples)), CPU))
        used = torch.cat([u.flatten() for u in ours.scorer.routing_record.used_TK.values()])
        return 3 * (used < ours.steering.experts.computing).float().mean().item()

    before = load()
    for _ in range(40):
        ours.sft_step(samples)
    assert abs(load() - 1.2) < 0.25 * abs(before - 1.2)


def test_experts_that_get_no_tokens_are_counted_over_the_layers():
    watch = RouterWatch(2, EXPERTS, RouterConfig())
    busy = torch.tensor([50.0, 50, 50, 50, 50, 50, 20, 20])
    watch.counts_LE[:] = torch.stack([busy, busy])
    assert watch.metrics()["router/idle_experts"] == 0
    watch.counts_LE[1, 1:3] = torch.tensor([0.0, 0.5])
    assert watch.metrics()["router/idle_experts"] == 2
