"""What samples begin with in common is computed once, and the update is the one without it."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from fakes import sample
from hypothesis import given
from hypothesis import strategies as st
from test_learner import assert_close, flat

from trainer.batch import head, pack
from trainer.config import LearnerConfig, LossConfig, OptimConfig, RouterConfig
from trainer.learner import Learner
from trainer.micro_batches import plan_micro_batches, plan_shared
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.scorer import Scorer
from trainer.shared_prefixes import share

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
# Few tokens, so that many begin alike.
alike = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=30)


def begun(lengths: Sequence[int], common: int, seed: int = 0) -> list[TrainSample]:
    """Samples of these lengths whose first tokens, up to `common`, are the same."""
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(20, 400) for _ in range(common))
    made = [sample(f"s{i}", n, rng, prompt=4) for i, n in enumerate(lengths)]
    return [replace(s, token_ids=prompt[: len(s.token_ids)] + s.token_ids[common:]) for s in made]


def groups() -> list[TrainSample]:
    """Two groups; the first has two members alike, and one that is the beginning of another."""
    first = begun((30, 41, 26, 33), 17)
    twin = replace(first[1], id="twin", advantages=tuple(-a for a in first[1].advantages))
    short = {name: getattr(first[3], name)[:29] for name in PER_TOKEN}
    return [*first, twin, replace(first[3], id="short", **short), *begun((35, 22), 12, seed=5)]


PER_TOKEN = ("token_ids", "loss_mask", "rollout_logprobs", "advantages", "versions")


@given(alike)
def test_the_tree_has_each_beginning_once_and_every_path_leads_through_its_sample(samples):
    ordered = sorted(samples, key=len, reverse=True)
    shared = share(ordered)
    beginnings = {s[: n + 1] for s in ordered for n in range(len(s))}
    assert sum(shared.new) == len(beginnings)
    token_of = {}
    for tokens, path in zip(ordered, shared.paths, strict=True):
        for place, node in enumerate(path):
            assert token_of.setdefault(node, tokens[: place + 1]) == tokens[: place + 1]
    assert sorted(token_of) == list(range(len(beginnings)))


@given(alike, st.integers(12, 60), st.integers(1, 3))
def test_shared_micro_batches_hold_each_sample_once_and_are_never_too_long(samples, most, ranks):
    plan = plan_shared(samples, most, ranks)
    assert len(plan) == ranks and len({len(rank) for rank in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    assert sorted(i for batch in batches for i in batch) == list(range(len(samples)))
    for batch in batches:
        ordered = sorted((samples[i] for i in batch), key=len, reverse=True)
        shared = share(ordered)
        rows = sum(len(s) for s, new in zip(ordered, shared.new, strict=True) if new)
        assert (sum(shared.new) + rows) / 2 <= most


@given(alike, st.integers(12, 60), st.integers(1, 3))
def test_sharing_needs_few_more_micro_batches_than_lengths_alone(samples, most, ranks):
    """A chunk of neighbours may be up to a sample short of full, where the other plan fills gaps."""
    alone = plan_micro_batches([len(s) for s in samples], most, ranks)
    assert len(plan_shared(samples, most, ranks)[0]) <= 2 * len(alone[0])


def test_micro_batches_of_two_ranks_are_about_as_much_work():
    samples = [s.token_ids for seed in range(8) for s in begun((40, 38, 36, 42), 20, seed)]
    [[mine], [other]] = plan_shared(samples, 800, 2)
    work = [sum(share(sorted((samples[i] for i in b), key=len)[::-1]).new) for b in (mine, other)]
    assert abs(work[0] - work[1]) <= 42


def test_a_sample_that_is_too_long_is_refused_as_without_sharing():
    with pytest.raises(ValueError, match=r"of 9 tokens does not fit a micro-batch of 8"):
        plan_shared([(1,) * 3, (2,) * 9], 8)


def scored(folder, batch, sharing: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scorer = Scorer(load_policy(folder, torch.float32), 1.0)
    packed = pack(batch, range(len(batch)), CPU, sharing=sharing)
    assert (len(packed.input_ids_T) < packed.num_tokens) == sharing
    logprobs_N = scorer(packed).logprobs_N
    (logprobs_N * packed.advantages_N).sum().backward()
    gradients = {n: p.grad for n, p in scorer.named_parameters() if p.grad is not None}
    return logprobs_N.detach(), gradients


def test_log_probs_and_gradients_are_those_of_samples_end_to_end(family_checkpoint):
    wanted, gradients = scored(family_checkpoint, groups(), sharing=False)
    found, mine = scored(family_checkpoint, groups(), sharing=True)
    assert_close(found, wanted, 1e-5, "log-probs")
    assert mine.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_close(mine[name], gradient, 2e-5, name)


def learner(folder, sharing: bool, **changes) -> Learner:
    router = RouterConfig(
        balance_weight=1.0, balance_groups=2, z_weight=0.01, bias_rate=changes.pop("bias_rate", 0.0)
    )
    settings = {
        "micro_batch_tokens": 128,
        "loss": LossConfig(kind="longcat", max_completion_tokens=40, behaviour="learner"),
        "optim": OptimConfig(lr=1e-3, eps=1e-5),
        "router": router,
        "threads": 1,
    }
    ours = Learner(folder, LearnerConfig(**(settings | changes)), temperature=1.0, keep_versions=1)
    ours.passes.sharing = sharing
    return ours


@pytest.mark.parametrize("supervised", [False, True])
def test_three_steps_with_router_losses_are_the_same(family_checkpoint, supervised):
    """Loads, balance loss, z-loss and all other metrics count each sample's tokens; the second update is on
    samples of an earlier version, which the kept weights score."""
    results = []
    for sharing in (False, True):
        ours = learner(family_checkpoint, sharing)
        computed = sum(len(b.input_ids_T) for b in ours.passes.micro_batches(groups()))
        metrics = []
        for _ in range(3):
            if supervised:
                metrics.append(ours.sft_step(groups()))
                continue
            batch = [
                replace(
                    s, versions=tuple(max(0, ours.version - 1) if m else -1 for m in s.loss_mask)
                )
                for s in groups()
            ]
            metrics.append(ours.step(batch).metrics)
        results.append((computed, metrics, flat(ours.logprobs(groups()))))
    (every, wanted, logprobs), (computed, found, others) = results
    assert computed < 0.8 * every
    assert_close(others, logprobs, 1e-4, "log-probs after three steps")
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if not name.startswith("time/") and name != "learner/computed_tokens":
                assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), name


def test_biases_are_moved_by_the_loads_of_all_samples(checkpoint):
    moved = []
    for sharing in (False, True):
        ours = learner(checkpoint, sharing, bias_rate=0.1)
        ours.step(groups())
        state = ours.scorer.state_dict()
        moved.append(torch.cat([b for n, b in state.items() if n.endswith("correction_bias")]))
    assert torch.allclose(*moved, atol=1e-7)


def test_the_head_of_a_shared_batch_is_its_first_samples_packed_alone():
    several = groups()
    whole = pack(several, range(len(several)), CPU, sharing=True)
    for kept in range(1, len(several)):
        wanted = pack(several, whole.samples[:kept], CPU, sharing=True)
        count = int(torch.isin(whole.sample_N, torch.tensor(whole.samples[:kept])).sum())
        cut = head(whole, count)
        assert (cut.num_tokens, cut.samples, cut.new) == (
            wanted.num_tokens,
            wanted.samples,
            wanted.new,
        )
        for name, value in vars(wanted).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(vars(cut)[name], value), name
        for name in ("tokens_R", "rows_T"):
            mine, theirs = getattr(cut.layout, name), getattr(wanted.layout, name)
            assert (mine is None) == (theirs is None)
            assert mine is None or torch.equal(mine, theirs)


def test_repeated_routing_is_never_shared(checkpoint):
    """Two samples that begin alike may have been routed differently by the engine."""
    ours = Learner(
        checkpoint,
        LearnerConfig(micro_batch_tokens=400, router=RouterConfig(replay=True), threads=1),
        temperature=1.0,
        keep_versions=0,
    )
    [batch] = ours.passes.micro_batches(groups())
    assert batch.copies_T is None and len(batch.input_ids_T) == batch.num_tokens


def test_little_in_common_is_not_worth_it():
    apart = pack(begun((40, 38, 36), 1), range(3), CPU, sharing=True)
    assert apart.copies_T is None and apart.layout.tokens_R is None
