"""Several updates on a batch against a hand-written loop over transformers' own model, and their
bookkeeping."""

import math
from dataclasses import replace

import pytest
import torch
from learner_process import watched
from pydantic import ValidationError
from test_learner import learner, samples, stock_logprobs, with_rollout_logprobs
from transformers import AutoModelForCausalLM

from trainer.batch_updates import mini_batches
from trainer.config import LearnerConfig, LoraConfig, LossConfig, OptimConfig, UpdatesConfig
from trainer.sample import TrainSample

pytestmark = pytest.mark.heavy

RATE = 5e-4
DAPO = LossConfig(kind="dapo", behaviour="learner")
FOUR_TIMES_TWO = UpdatesConfig(mini_batches=4, epochs=2)


def several(checkpoint, updates: UpdatesConfig = FOUR_TIMES_TWO, **changes):
    settings = {"loss": DAPO, "optim": OptimConfig(lr=RATE), "updates": updates}
    return learner(checkpoint, **{**settings, **changes})


def fresh(ours) -> list[TrainSample]:
    return with_rollout_logprobs(samples(), ours.logprobs(samples()), ours.version)


def hand_written(checkpoint, batch, plan, max_kl: float = math.inf):
    """PPO's loop as its paper has it, a sequence at a time: ratios to the policy that the batch began with.

    Returns the loss, KL and largest ratio of each update, and the log-probs after the last.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    with torch.no_grad():
        start = [stock_logprobs(model, s) for s in batch]
    found = []
    for chosen in plan:
        adam.zero_grad()
        tokens = sum(batch[i].num_policy_tokens for i in chosen)
        loss, kl, most = 0.0, 0.0, 0.0
        for i in chosen:
            advantage = max(batch[i].advantages, key=abs)
            ratio = (stock_logprobs(model, batch[i]) - start[i]).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum()
            (-gain / tokens).backward()
            loss -= gain.item() / tokens
            kl += (ratio - 1 - ratio.log()).sum().item() / tokens
            most = max(most, ratio.max().item())
        if kl > max_kl:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        found.append((loss, kl, most))
    with torch.no_grad():
        return found, [stock_logprobs(model, s) for s in batch]


def updates_of(metrics: dict[str, float]) -> list[tuple[float, float, float]]:
    return [
        tuple(metrics[f"update/{n}/{name}"] for name in ("loss", "kl", "ratio_max"))
        for n in range(1, int(metrics["update/made"]) + 1)
    ]


def test_each_update_is_that_of_a_loop_by_hand(checkpoint):
    ours = several(checkpoint)
    batch = fresh(ours)
    plan = mini_batches(len(batch), FOUR_TIMES_TWO, ours.version)
    wanted, after = hand_written(checkpoint, batch, plan)
    metrics = ours.step(batch).metrics
    found = updates_of(metrics)
    assert len(found) == len(wanted) == 8
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=1e-6)
    assert found[0][1] == pytest.approx(0, abs=1e-6) and found[0][2] == pytest.approx(1, abs=1e-4)
    assert found[-1][1] > 1e-3, "the policy has moved within the batch"
    assert metrics["loss/clipped_pos"] + metrics["loss/clipped_neg"] > 0, "the clip is at work"
    assert metrics["update/stopped"] == 0 and ours.version == 1
    for mine, theirs in zip(ours.logprobs(batch), after, strict=True):
        assert mine == pytest.approx(theirs.tolist(), abs=1e-2)


def test_the_updates_end_early_where_a_loop_by_hand_does(checkpoint):
    ours = several(checkpoint)
    batch = fresh(ours)
    plan = mini_batches(len(batch), FOUR_TIMES_TWO, 0)
    unlimited, _ = hand_written(checkpoint, batch, plan)
    limit = (unlimited[3][1] + max(kl for _, kl, _ in unlimited[:3])) / 2
    assert unlimited[3][1] > limit, "the fourth update is the first beyond"
    wanted, after = hand_written(checkpoint, batch, plan, limit)
    ours = several(checkpoint, UpdatesConfig(mini_batches=4, epochs=2, max_kl=limit))
    metrics = ours.step(batch).metrics
    assert (metrics["update/made"], metrics["update/stopped"], ours.version) == (3, 1, 1)
    assert updates_of(metrics) == [pytest.approx(w, rel=2e-3, abs=1e-6) for w in wanted]
    for mine, theirs in zip(ours.logprobs(batch), after, strict=True):
        assert mine == pytest.approx(theirs.tolist(), abs=1e-2)


@pytest.mark.parametrize("kind", ["longcat", "grpo", "ppo", "decoupled_ppo", "gspo"])
def test_a_batch_of_a_version_before_has_its_own_ratios_in_every_update(checkpoint, kind):
    """Stale samples: the ratio is to the version that wrote them, the KL to the batch's start."""
    loss = LossConfig(kind=kind, behaviour="learner", max_completion_tokens=20)
    ours = several(checkpoint, UpdatesConfig(mini_batches=2), loss=loss, keep_versions=1)
    old = ours.logprobs(samples())
    rewarded = [replace(s, reward=max(s.advantages, key=abs)) for s in samples()]
    batch = with_rollout_logprobs(rewarded, old, 0)
    ours.step(batch)
    now = ours.logprobs(samples())
    metrics = ours.step(batch).metrics
    ratios = [
        math.exp(b - a)
        for was, new in zip(old, now, strict=True)
        for a, b in zip(was, new, strict=True)
    ]
    assert metrics["parity/mean_abs_dlogp"] < 1e-5
    assert metrics["parity/tokens"] == sum(s.num_policy_tokens for s in batch)
    assert metrics["update/1/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["learn/all/ratio_max"] > 0.9 * max(ratios) > 1
    assert sorted(ours.past_weights) == [1]


def test_the_weights_of_the_batchs_start_are_those_kept_of_its_version(checkpoint):
    ours = several(checkpoint, keep_versions=1)
    batch = fresh(ours)
    before = ours.logprobs(batch)
    ours.step(batch)
    told = with_rollout_logprobs(samples(), before, 0)
    assert ours.step(told).metrics["parity/mean_abs_dlogp"] < 1e-5


def test_one_update_is_what_no_setting_gives(checkpoint):
    found = []
    for updates in (UpdatesConfig(), UpdatesConfig(mini_batches=1, epochs=1)):
        ours = several(checkpoint, updates, deterministic=True)
        metrics = ours.step(fresh(ours)).metrics
        assert not [name for name in metrics if name.startswith("update/")]
        found.append(watched(metrics))
    assert found[0] == found[1]


def test_adapters_are_trained_in_several_updates(checkpoint):
    lora = LoraConfig(rank=4, alpha=8, targets=("o_proj", "down_proj"))
    ours = several(checkpoint, lora=lora, optim=OptimConfig(lr=1e-2))
    batch = fresh(ours)
    metrics = ours.step(batch).metrics
    assert metrics["update/made"] == 8 and metrics["update/8/kl"] > 0


def test_a_learner_loaded_between_batches_repeats_their_updates_to_the_bit(checkpoint, tmp_path):
    """A stop between updates begins the batch again: a checkpoint is of a whole step, and the deal of samples
    follows from the version."""
    first = several(checkpoint, deterministic=True, keep_versions=1)
    first.step(fresh(first))
    first.save_state(tmp_path / "step_1")
    first.wait_saved()
    batch = fresh(first)
    wanted = first.step(batch).metrics
    second = several(checkpoint, deterministic=True, keep_versions=1)
    second.load_state(tmp_path / "step_1")
    assert watched(second.step(batch).metrics) == watched(wanted)
    assert second.optimizer.updates == first.optimizer.updates == 2


def test_an_update_that_is_not_finite_is_left_out_and_the_others_are_made(checkpoint):
    ours = several(checkpoint, UpdatesConfig(mini_batches=4))
    batch = fresh(ours)
    batch[0] = replace(batch[0], advantages=tuple(1e38 * a for a in batch[0].advantages))
    metrics = ours.step(batch).metrics
    assert (metrics["learner/updates_set_aside"], metrics["update/made"]) == (1, 3)
    assert all(math.isfinite(x) for one in ours.logprobs(samples()) for x in one)


def test_every_epoch_deals_every_sample_once_and_each_version_otherwise():
    plan = mini_batches(10, UpdatesConfig(mini_batches=4, epochs=3), seed=5)
    assert plan == mini_batches(10, UpdatesConfig(mini_batches=4, epochs=3), seed=5)
    for epoch in (plan[:4], plan[4:8], plan[8:]):
        assert sorted(i for part in epoch for i in part) == list(range(10))
        assert {len(part) for part in epoch} == {2, 3}
    assert plan[:4] != plan[4:8] != mini_batches(10, UpdatesConfig(mini_batches=4), seed=6)
    assert mini_batches(2, UpdatesConfig(mini_batches=4), seed=0) in ([[0], [1]], [[1], [0]])
    assert mini_batches(3, UpdatesConfig(), seed=0) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"updates": {"max_kl": 0.1}}, "there is one: set mini_batches or epochs too"),
        ({"updates": {"epochs": 2}, "loss": {"kind": "rloo"}}, "'rloo' has no ratio"),
        ({"updates": {"epochs": 0}}, "Input should be greater than 0"),
    ],
)
def test_updates_that_make_no_sense_are_refused(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        LearnerConfig.model_validate(given)
