"""The learner against stock transformers, against itself packed and unpacked, and over versions."""

import math
import multiprocessing
import pickle
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import covariance, fmean

import pytest
import torch
from fakes import sample
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import AutoModelForCausalLM

from trainer.batch import pack
from trainer.config import LearnerConfig, LossConfig, OptimConfig, SftConfig
from trainer.cpu import row_kernel
from trainer.cpu.attention import Layout, plan_buckets
from trainer.learner import Learner
from trainer.loss import LOSSES
from trainer.moe.experts import GroupedExperts
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.sample_check import MOST_SET_ASIDE, BadSample, NotFinite
from trainer.scorer import Scorer
from trainer.sft import train_sft
from trainer.sft_ranks import SftError, make_sft

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
LENGTHS = (5, 31, 12, 40, 9, 23, 17, 8)
LOSS = LossConfig(max_completion_tokens=20)


def samples(version: int = 0, seed: int = 3) -> list[TrainSample]:
    rng = random.Random(seed)
    return [sample(f"s{i}", n, rng, version=version) for i, n in enumerate(LENGTHS)]


def learner(folder: Path, *, keep_versions: int = 0, temperature: float = 1.0, **config) -> Learner:
    settings = {"micro_batch_tokens": 64, "loss": LOSS, "optim": OptimConfig(lr=1e-2), "threads": 1}
    return Learner(
        folder,
        LearnerConfig(**{**settings, **config}),
        temperature=temperature,
        keep_versions=keep_versions,
    )


def with_rollout_logprobs(
    batch: Sequence[TrainSample], logprobs: Sequence[Sequence[float]], version: int
) -> list[TrainSample]:
    """The samples as if an engine of this version had written them with these log-probs."""
    told = []
    for s, values in zip(batch, logprobs, strict=True):
        left = iter(values)
        rollout = tuple(next(left) if m else 0.0 for m in s.loss_mask)
        versions = tuple(version if m else -1 for m in s.loss_mask)
        told.append(replace(s, rollout_logprobs=rollout, versions=versions))
    return told


def stock_logprobs(model, s: TrainSample, temperature: float = 1.0) -> torch.Tensor:
    """What transformers' own model says of the policy's tokens, one sequence at a time."""
    ids = torch.tensor([s.token_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1] / temperature
    every = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return every[torch.tensor(s.loss_mask[1:])]


def assert_close(found: torch.Tensor, wanted: torch.Tensor, relative: float, what: str) -> None:
    gap = (found - wanted).norm() / wanted.norm()
    assert gap <= relative, f"{what}: relative difference {gap:.1e}"


def flat(logprobs: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor([value for values in logprobs for value in values])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_packed_are_those_unpacked_and_those_of_stock_transformers(
    family_checkpoint, temperature
):
    ours = learner(family_checkpoint, temperature=temperature)
    packed = flat(ours.logprobs(samples()))
    unpacked = flat([ours.logprobs([s])[0] for s in samples()])
    model = AutoModelForCausalLM.from_pretrained(family_checkpoint)
    with torch.no_grad():
        stock = torch.cat([stock_logprobs(model, s, temperature) for s in samples()])
    assert_close(packed, unpacked, 1e-5, "packed and unpacked")
    assert_close(packed, stock, 1e-5, "ours and stock transformers")


def test_the_checkpoint_tells_wrong_positions_and_wrong_neighbours_from_right_ones(
    family_checkpoint,
):
    """Else the comparisons of this file would pass for a learner that gets them wrong."""
    scorer = Scorer(load_policy(family_checkpoint, torch.float32), 1.0)
    several = samples()[:3]
    batch = pack(several, [0, 1, 2], CPU)
    with torch.no_grad():
        right = scorer(batch).logprobs_N
        stretched = scorer(replace(batch, position_ids_T=batch.position_ids_T * 2)).logprobs_N
        together = plan_buckets([sum(len(s.token_ids) for s in several)], CPU)
        crossing = scorer(replace(batch, layout=Layout(together))).logprobs_N
    assert (stretched - right).abs().mean() > 1e-2
    first = batch.sample_N == batch.sample_N[0]
    assert torch.allclose(crossing[first], right[first], atol=1e-4)
    assert (crossing - right)[~first].abs().mean() > 1e-2


def test_gradients_are_those_of_stock_transformers(family_checkpoint):
    ours = load_policy(family_checkpoint, torch.float32)
    (-Scorer(ours, 1.0)(pack(samples(), range(len(LENGTHS)), CPU)).logprobs_N.sum()).backward()
    stock = AutoModelForCausalLM.from_pretrained(family_checkpoint)
    (-torch.cat([stock_logprobs(stock, s) for s in samples()]).sum()).backward()
    wanted = {name: p.grad for name, p in stock.named_parameters()}
    mine = dict(ours.named_parameters())
    assert set(mine) == set(wanted)
    for name, parameter in mine.items():
        # transformers allocates rows for LongCat-Flash's zero experts, which have no weights.
        real = wanted[name][: len(parameter)]
        assert parameter.grad is not None, name
        assert_close(parameter.grad, real, 1e-5, name)


def test_every_parameter_gets_a_gradient(family_checkpoint):
    model = load_policy(family_checkpoint, torch.float32)
    (-Scorer(model, 1.0)(pack(samples(), range(len(LENGTHS)), CPU)).logprobs_N.sum()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_tokens_of_zero_experts_alone_pass_through_weighted(checkpoint):
    config = load_policy(checkpoint, torch.float32).config
    experts = GroupedExperts(config)
    x = torch.randn(5, config.hidden_size, requires_grad=True)
    chosen = torch.full((5, 2), config.n_routed_experts + 1)
    weights = torch.tensor([[0.3, 0.2]]).expand(5, 2)
    out = experts(x, chosen, weights)
    assert torch.allclose(out, 0.5 * x)
    out.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 0.5))


def test_a_step_makes_a_new_version_and_says_what_it_did(checkpoint):
    ours = learner(checkpoint)
    batch = with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)
    before = flat(ours.logprobs(batch))
    metrics = ours.step(batch).metrics
    assert ours.version == 1
    assert (flat(ours.logprobs(batch)) - before).abs().max() > 1e-3
    tokens = sum(s.num_policy_tokens for s in batch)
    assert metrics["parity/tokens"] == metrics["learner/policy_tokens"] == tokens
    assert metrics["learner/tokens"] == sum(LENGTHS)
    assert metrics["parity/mean_abs_dlogp"] < 1e-5
    assert metrics["loss/clipped_pos"] == metrics["loss/clipped_neg"] == 0
    assert metrics["optim/lr"] == 1e-2 and metrics["optim/grad_norm"] > 0
    assert 0 < metrics["loss/entropy"] < math.log(512)
    # At the weights that wrote the samples each ratio is 1, so the loss is the advantages' mean.
    advantages = sum(a for s in batch for a in s.advantages)
    wanted = -advantages / (len(batch) * LOSS.max_completion_tokens)
    assert metrics["loss/loss"] == pytest.approx(wanted, rel=1e-4)


def test_a_step_moves_logprobs_with_the_sign_of_the_advantage(family_checkpoint):
    ours = learner(family_checkpoint, optim=OptimConfig(lr=1e-3))
    before = ours.logprobs(samples())
    ours.step(with_rollout_logprobs(samples(), before, 0))
    after = ours.logprobs(samples())
    gained = sum(
        max(s.advantages, key=abs) * (sum(new) - sum(old))
        for s, old, new in zip(samples(), before, after, strict=True)
    )
    assert gained > 0


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_step_of_any_loss_favours_what_was_rewarded(checkpoint, kind):
    loss = LossConfig(kind=kind, max_completion_tokens=20)
    ours = learner(checkpoint, loss=loss, optim=OptimConfig(lr=1e-3))
    batch = [replace(s, reward=max(s.advantages, key=abs)) for s in samples()]
    before = ours.logprobs(batch)
    ours.step(with_rollout_logprobs(batch, before, 0))
    moved = [fmean(new) - fmean(old) for old, new in zip(before, ours.logprobs(batch), strict=True)]
    assert covariance([s.reward for s in batch], moved) > 0


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_a_step_is_the_same_in_one_micro_batch_or_many(checkpoint, kind):
    found = []
    for tokens in (40, 400):
        loss = LossConfig(kind=kind, max_completion_tokens=20)
        ours = learner(checkpoint, micro_batch_tokens=tokens, loss=loss)
        found.append(
            ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)).metrics
        )
    for key in ("loss/loss", "loss/entropy", "optim/grad_norm", "parity/tokens"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4), key


def test_samples_are_scored_under_exactly_the_weights_of_their_version(family_checkpoint):
    """Each version's samples carry that version's log-probs: scored under any other they would differ."""
    ours = learner(family_checkpoint, keep_versions=2, optim=OptimConfig(lr=1e-3))
    said = {}
    for version in range(3):
        said[version] = ours.logprobs(samples())
        if version < 2:
            ours.step(with_rollout_logprobs(samples(), said[version], version))
    gaps = [(flat(said[a]) - flat(said[b])).abs().mean() for a, b in ((0, 1), (1, 2), (0, 2))]
    assert min(gaps) > 1e-3, "the versions differ"
    mixed = [
        s
        for version in range(3)
        for s in with_rollout_logprobs(samples(), said[version], version)[version::3]
    ]
    metrics = ours.step(mixed).metrics
    assert metrics["parity/tokens"] == sum(s.num_policy_tokens for s in mixed)
    assert metrics["parity/mean_abs_dlogp"] < 1e-5


def test_logprobs_of_another_version_are_seen_as_a_gap(checkpoint):
    ours = learner(checkpoint, keep_versions=1, optim=OptimConfig(lr=1e-3))
    first = ours.logprobs(samples())
    ours.step(with_rollout_logprobs(samples(), first, 0))
    mislabelled = with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)
    assert ours.step(mislabelled).metrics["parity/mean_abs_dlogp"] > 1e-3


def test_the_ratio_is_taken_against_the_version_that_wrote_the_sample(checkpoint):
    """Two steps on the same samples of version 0: the second step's ratios are those by hand."""
    ours = learner(checkpoint, keep_versions=1, optim=OptimConfig(lr=1e-3))
    old = ours.logprobs(samples())
    batch = with_rollout_logprobs(samples(), old, 0)
    ours.step(batch)
    new = ours.logprobs(samples())
    metrics = ours.step(batch).metrics
    objective = clipped = 0.0
    for s, was, now in zip(batch, old, new, strict=True):
        advantage = max(s.advantages, key=abs)
        for ratio in (math.exp(b - a) for a, b in zip(was, now, strict=True)):
            bounded = min(max(ratio, 0.8), 1.28)
            value = min(ratio * advantage, bounded * advantage)
            objective += max(value, 3 * advantage) if advantage < 0 else value
            clipped += ratio > 1.28 and advantage > 0
    wanted = -objective / (len(batch) * LOSS.max_completion_tokens)
    assert metrics["loss/loss"] == pytest.approx(wanted, rel=1e-3)
    assert clipped > 0, "the samples moved far enough to test the clipping"
    tokens = sum(s.num_policy_tokens for s in batch)
    assert metrics["loss/clipped_pos"] == pytest.approx(clipped / tokens)


def test_a_version_whose_weights_are_gone_is_refused_by_number(checkpoint):
    ours = learner(checkpoint, keep_versions=1)
    for version in range(2):
        ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), version))
    with pytest.raises(
        ValueError, match="version 0 came when the weights of \\[1\\] and 2 are kept"
    ):
        ours.step(samples(version=0))


def test_only_as_many_past_weights_are_kept_as_asked_for(checkpoint):
    ours = learner(checkpoint, keep_versions=2)
    for version in range(4):
        ours.step(samples(version))
        assert sorted(ours.past_weights) == list(range(max(0, version - 1), version + 1))


def test_each_token_of_a_sequence_of_two_versions_is_scored_under_its_own(checkpoint):
    """As when an engine's weights change half-way: it reads what it wrote with the new weights."""
    loss = LossConfig(max_completion_tokens=20, behaviour="learner")
    ours = learner(checkpoint, keep_versions=1, loss=loss, optim=OptimConfig(lr=1e-3))
    said = [ours.logprobs(samples())]
    ours.step(with_rollout_logprobs(samples(), said[0], 0))
    said.append(ours.logprobs(samples()))
    first, second = (with_rollout_logprobs(samples(), said[v], v) for v in (0, 1))
    changed = [
        replace(
            old,
            rollout_logprobs=old.rollout_logprobs[:cut] + new.rollout_logprobs[cut:],
            versions=old.versions[:cut] + new.versions[cut:],
        )
        for old, new in zip(first, second, strict=True)
        for cut in [len(old.token_ids) // 2]
    ]
    assert any(set(s.policy_versions) == {0, 1} for s in changed)
    metrics = ours.step(changed).metrics
    assert metrics["parity/tokens"] == sum(s.num_policy_tokens for s in changed)
    assert metrics["parity/mean_abs_dlogp"] < 1e-5


def test_with_the_engines_logprobs_as_behaviour_no_past_weights_are_needed(checkpoint):
    loss = LossConfig(max_completion_tokens=20, behaviour="engine")
    ours = learner(checkpoint, loss=loss)
    ours.step(samples(0))
    metrics = ours.step(samples(0)).metrics
    assert math.isfinite(metrics["loss/loss"])
    assert metrics["parity/tokens"] == 0 and math.isnan(metrics["parity/mean_abs_dlogp"])


def with_number(s: TrainSample, name: str, value: float) -> TrainSample:
    """The sample with this reward, or this number at the first policy token of one of its lists."""
    if name == "reward":
        return replace(s, reward=value)
    first = s.loss_mask.index(True)
    numbers = [value if t == first else one for t, one in enumerate(getattr(s, name))]
    return replace(s, **{name: tuple(numbers)})


def fresh(ours: Learner) -> list[TrainSample]:
    """Samples of the present version."""
    return with_rollout_logprobs(samples(), ours.logprobs(samples()), ours.version)


@pytest.fixture(scope="module")
def without_the_first(checkpoint):
    """The samples of a fresh learner, its loss in a step without their first, its log-probs thereafter."""
    ours = learner(checkpoint)
    batch = fresh(ours)
    loss = ours.step(batch[1:]).metrics["loss/loss"]
    return batch, loss, ours.logprobs(samples())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["reward", "advantages", "rollout_logprobs"])
def test_a_sample_that_is_not_finite_is_set_aside_and_the_others_train(
    checkpoint, without_the_first, name, value
):
    (first, *rest), loss, logprobs = without_the_first
    ours = learner(checkpoint)
    metrics = ours.step([with_number(first, name, value), *rest]).metrics
    assert (metrics["learner/samples_set_aside"], metrics["learner/updates_set_aside"]) == (1, 0)
    assert metrics["loss/loss"] == loss
    assert ours.logprobs(samples()) == logprobs


def test_a_batch_of_which_nothing_is_left_changes_nothing_and_the_run_ends_after_many(checkpoint):
    ours = learner(checkpoint, keep_versions=1)
    before = ours.logprobs(samples())
    for version in range(MOST_SET_ASIDE):
        metrics = ours.step([replace(s, reward=math.nan) for s in samples(version)]).metrics
        assert metrics["learner/updates_set_aside"] == 1
        assert metrics["learner/samples_set_aside"] == len(LENGTHS)
    assert ours.version == MOST_SET_ASIDE and ours.logprobs(samples()) == before
    with pytest.raises(
        NotFinite, match=r"sample s0 \(fake\): its reward is nan.* 6 updates in a row"
    ):
        ours.step([replace(s, reward=math.nan) for s in samples(MOST_SET_ASIDE)])


def test_samples_that_mostly_are_not_finite_end_the_run_too(checkpoint):
    ours = learner(checkpoint)

    def mostly_broken() -> list[TrainSample]:
        good = fresh(ours)
        return [*good[:3], *(with_number(s, "advantages", math.nan) for s in good[3:])]

    for _ in range(MOST_SET_ASIDE):
        assert ours.step(mostly_broken()).metrics["learner/updates_set_aside"] == 0
    ours.step(fresh(ours))
    for _ in range(MOST_SET_ASIDE):
        ours.step(mostly_broken())
    with pytest.raises(NotFinite, match="the advantage of token"):
        ours.step(mostly_broken())


def test_a_batch_that_cannot_be_trained_on_is_refused_before_anything_changes(checkpoint):
    ours = learner(checkpoint)
    before = ours.logprobs(samples())
    with pytest.raises(BadSample, match="holds no sample"):
        ours.step([])
    with pytest.raises(BadSample, match="are more than the 64 of learner"):
        ours.step([sample("long", 65, random.Random(0))])
    assert ours.version == 0 and ours.logprobs(samples()) == before


def test_the_advantage_over_the_batch_is_the_learners_to_compute(checkpoint):
    """REINFORCE++: what the samples carry as advantages is replaced by their normalised rewards."""
    ours = learner(checkpoint, loss=LossConfig(kind="reinforce_pp"))
    batch = [replace(s, reward=float(i % 3)) for i, s in enumerate(samples())]
    batch = with_rollout_logprobs(batch, ours.logprobs(batch), 0)
    before = ours.logprobs(batch)
    assert ours.step(batch).metrics["loss/loss"] == pytest.approx(0, abs=1e-5), (
        "the advantages' mean is 0"
    )
    after = ours.logprobs(batch)
    tokens = [s.num_policy_tokens for s in batch]
    mean = sum(s.reward * n for s, n in zip(batch, tokens, strict=True)) / sum(tokens)
    gained = sum(
        (s.reward - mean) * (sum(new) - sum(old))
        for s, old, new in zip(batch, before, after, strict=True)
    )
    assert gained > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_that_is_not_finite_is_dropped_and_later_updates_are_as_without_it(
    checkpoint, dtype
):
    ours, without = (learner(checkpoint, keep_versions=1, dtype=dtype) for _ in range(2))
    before = ours.logprobs(samples())
    huge = [replace(s, advantages=tuple(1e38 * a for a in s.advantages)) for s in fresh(ours)]
    result = ours.step(huge)
    assert result.metrics["learner/updates_set_aside"] == 1
    assert all(math.isfinite(v) for v in result.metrics.values()) and result.token_scores == []
    assert (ours.version, ours.optimizer.updates) == (1, 0)
    assert ours.logprobs(samples()) == before
    metrics = ours.step(fresh(ours)).metrics
    assert metrics["loss/loss"] == without.step(fresh(without)).metrics["loss/loss"]
    assert ours.logprobs(samples()) == without.logprobs(samples())


@pytest.mark.parametrize("pass_", ["forward", "backward"])
def test_a_kernel_that_gives_nan_costs_its_update_only_and_the_run_after_many(checkpoint, pass_):
    ours = learner(checkpoint)
    before = ours.logprobs(samples())

    def broken(module, given, out: torch.Tensor) -> torch.Tensor:
        if pass_ == "forward":
            return out * math.nan
        out.register_hook(lambda gradient: gradient * math.nan)
        return out

    hook = ours.model.model.norm.register_forward_hook(broken)
    for _ in range(MOST_SET_ASIDE):
        metrics = ours.step(samples(ours.version)).metrics
        assert metrics["learner/updates_set_aside"] == 1
    with pytest.raises(NotFinite, match=r"of update 0 is nan: the weights stay as they are"):
        ours.step(samples(ours.version))
    hook.remove()
    assert ours.logprobs(samples()) == before
    ours.step(samples(ours.version))
    assert ours.logprobs(samples()) != before


def test_imitation_sets_an_update_aside_too(checkpoint):
    ours = learner(checkpoint)
    before = ours.logprobs(samples())
    hook = ours.model.model.norm.register_forward_hook(lambda module, given, out: out * math.inf)
    for _ in range(MOST_SET_ASIDE):
        ours.sft_step(samples())
    with pytest.raises(NotFinite, match="update 0 is"):
        ours.sft_step(samples())
    hook.remove()
    assert (ours.optimizer.updates, ours.logprobs(samples())) == (0, before)


def test_imitation_lowers_the_loss_and_makes_no_version(family_checkpoint):
    ours = learner(family_checkpoint, optim=OptimConfig(lr=3e-3))
    losses = [ours.sft_step(samples())["sft/loss"] for _ in range(8)]
    assert losses[-1] < losses[0] - 0.5
    assert (ours.version, ours.optimizer.updates) == (0, 8)


def test_the_imitation_loss_is_the_mean_over_the_policys_tokens(checkpoint):
    ours = learner(checkpoint)
    logprobs = flat(ours.logprobs(samples()))
    assert ours.sft_step(samples())["sft/loss"] == pytest.approx(-logprobs.mean().item(), rel=1e-5)


def test_the_learning_rate_warms_up_and_decays():
    optim = OptimConfig(lr=1.0, warmup_steps=4, decay_steps=10)
    rates = [optim.lr_at(step) for step in range(12)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 0.7])
    assert rates[5:] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0, 0])
    assert OptimConfig(lr=0.5).lr_at(0) == OptimConfig(lr=0.5).lr_at(10**6) == 0.5


def test_the_optimizer_uses_the_rate_of_its_update(checkpoint):
    ours = learner(checkpoint, optim=OptimConfig(lr=1e-3, warmup_steps=4))
    rates = [ours.step(samples(version)).metrics["optim/lr"] for version in range(2)]
    assert rates == pytest.approx([2.5e-4, 5e-4])


def test_in_bfloat16_the_loss_is_close_to_that_in_float32(family_checkpoint):
    found = {}
    for dtype in ("float32", "bfloat16"):
        ours = learner(family_checkpoint, dtype=dtype)
        found[dtype] = ours.sft_step(samples())["sft/loss"]
        assert all(p.dtype == torch.float32 for p in ours.optimizer.masters.values())
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=3e-2)
    assert found["bfloat16"] != found["float32"]


def test_a_saved_learner_says_the_same(family_checkpoint, tmp_path):
    ours = learner(family_checkpoint)
    ours.sft_step(samples())
    ours.save(tmp_path / "step_1")
    assert learner(tmp_path / "step_1").logprobs(samples()) == ours.logprobs(samples())


def test_a_cold_start_reports_each_update_and_repeats_exactly(checkpoint):
    sft = SftConfig(steps=5, batch_size=3, optim=OptimConfig(lr=3e-3))
    config = LearnerConfig(micro_batch_tokens=64, threads=1)

    def losses() -> list[tuple[int, float]]:
        reported: list[tuple[int, float]] = []
        train_sft(checkpoint, samples(), sft, config, seed=5, report=lambda *r: reported.append(r))
        return reported

    first = losses()
    assert [step for step, _ in first] == list(range(5))
    assert losses() == first


@pytest.mark.slow  # two processes import torch, twice
def test_a_cold_start_on_two_ranks_is_that_of_one_and_ends_with_either(checkpoint, tmp_path):
    config = LearnerConfig(micro_batch_tokens=64, threads=1)
    optim = OptimConfig(lr=3e-4)

    def train(ranks: int) -> list[tuple[int, float]]:
        told: list[tuple[int, float]] = []
        sft = SftConfig(steps=5, batch_size=3, ranks=ranks, optim=optim)
        folder = tmp_path / f"of-{ranks}"
        make_sft(
            checkpoint, samples(), sft, config, folder, seed=5, report=lambda *r: told.append(r)
        )
        return told

    reported = {ranks: train(ranks) for ranks in (1, 2)}
    assert [step for step, _ in reported[2]] == list(range(5))
    assert [x for _, x in reported[2]] == pytest.approx([x for _, x in reported[1]], rel=1e-5)
    one, two = (load_file(tmp_path / f"of-{n}" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-5 * weight.norm(), name

    with pytest.raises(SftError, match=r"^Repo id must be in the form"):
        make_sft(
            tmp_path / "nowhere",
            samples(),
            SftConfig(ranks=2),
            config,
            tmp_path / "none",
            seed=5,
            report=print,
        )

    others = set(multiprocessing.active_children())

    def die(step: int, loss: float) -> None:
        next(iter(set(multiprocessing.active_children()) - others)).kill()

    sft = SftConfig(steps=500, batch_size=3, ranks=2)
    rng, first = random.Random(0), samples()[3]
    length = len(first.token_ids)
    # More than torch's store takes at once, 8 MiB.
    many = [
        replace(first, rollout_logprobs=tuple(rng.random() for _ in range(length)))
        for _ in range(2**20 // length)
    ]
    assert len(pickle.dumps(many)) > 2**23
    with pytest.raises(SftError, match=r"SIGKILL|closed"):
        make_sft(checkpoint, many, sft, config, tmp_path / "dead", seed=5, report=die)
    assert set(multiprocessing.active_children()) == others


def test_a_step_that_computes_activations_again_is_the_same_step(family_checkpoint):
    found = []
    for recompute in (False, True):
        ours = learner(family_checkpoint, recompute=recompute)
        batch = with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)
        metrics = ours.step(batch).metrics
        found.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
        found.append(ours.logprobs(samples()))
    assert found[0] == found[2] and found[1] == found[3]


@pytest.mark.compiler
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_a_learner_with_compiled_kernels_trains_as_another_does(family_checkpoint, monkeypatch):
    monkeypatch.setattr(row_kernel, "_compiled", False)
    monkeypatch.setattr(row_kernel, "BLOCK", 256)  # a few tokens are enough to be compiled
    plain = learner(family_checkpoint)
    steps = [plain.step(samples(version)).metrics for version in range(2)]
    torch._dynamo.reset()
    before = counters["stats"]["unique_graphs"]
    # What is compiled for a few tokens is not what others should find.
    with inductor.patch(force_disable_caches=True):
        compiled = learner(family_checkpoint, compile=True)
        made = counters["stats"]["unique_graphs"]
        found = [compiled.step(samples(version)).metrics for version in range(2)]
    assert made >= before + 8
    # Lengths of a step that are unlike the warm-up's at most, on so few rows.
    assert counters["stats"]["unique_graphs"] <= made + 2
    for ours, theirs in zip(found, steps, strict=True):
        assert ours["loss/loss"] == pytest.approx(theirs["loss/loss"], rel=1e-4, abs=1e-6)
        assert ours["optim/grad_norm"] == pytest.approx(theirs["optim/grad_norm"], rel=1e-4)
