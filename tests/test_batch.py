"""Packing: each sample once, no micro-batch too long, each token predicted from the one before it."""

import random

import pytest
import torch
from fakes import sample
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import pack
from trainer.micro_batches import plan_micro_batches
from trainer.sample import TrainSample

CPU = torch.device("cpu")
lengths = st.lists(st.integers(1, 50), max_size=40)
few = st.lists(st.integers(3, 12), min_size=1, max_size=6)


def batch_of(lengths: list[int]):
    rng = random.Random(0)
    samples = [sample(f"s{i}", n, rng, version=i % 3) for i, n in enumerate(lengths)]
    return samples, pack(samples, range(len(samples)), CPU)


@given(lengths, st.integers(50, 120), st.integers(1, 4))
def test_micro_batches_hold_each_sample_once_and_are_never_too_long(lengths, max_tokens, ranks):
    plan = plan_micro_batches(lengths, max_tokens, ranks)
    assert sorted(i for rank in plan for batch in rank for i in batch) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in batch) <= max_tokens for rank in plan for batch in rank)


@given(lengths, st.integers(50, 120), st.integers(1, 4))
def test_ranks_get_equally_many_micro_batches(lengths, max_tokens, ranks):
    plan = plan_micro_batches(lengths, max_tokens, ranks)
    assert len(plan) == ranks and len({len(rank) for rank in plan}) == 1


@given(st.lists(st.integers(1, 50), min_size=20, max_size=40), st.integers(2, 4))
def test_the_loads_of_micro_batches_differ_by_less_than_the_longest_sample(lengths, ranks):
    plan = plan_micro_batches(lengths, 200, ranks)
    loads = [sum(lengths[i] for i in batch) for rank in plan for batch in rank]
    assert max(loads) - min(loads) <= max(lengths)


def test_the_example_of_the_docstring():
    assert plan_micro_batches([5, 3, 4, 4], 8) == [[[0, 1], [2, 3]]]


def test_a_sample_longer_than_a_micro_batch_is_refused_with_the_setting_to_change():
    with pytest.raises(
        ValueError,
        match=r"9 tokens does not fit a micro-batch of 8 \(learner.micro_batch_tokens\)",
    ):
        plan_micro_batches([3, 9], 8)


@given(few)
def test_the_stream_is_the_samples_end_to_end_longest_first_with_positions_from_zero(lengths):
    samples, batch = batch_of(lengths)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    assert tuple(batch.input_ids_T.tolist()) == tuple(
        t for i in order for t in samples[i].token_ids
    )
    assert batch.position_ids_T.tolist() == [t for i in order for t in range(lengths[i])]


@given(few)
def test_buckets_cover_the_stream_and_pad_little(lengths):
    _, batch = batch_of(lengths)
    assert [b.start for b in batch.layout.buckets] == [
        0,
        *(b.end for b in batch.layout.buckets[:-1]),
    ]
    assert batch.layout.buckets[-1].end == sum(lengths)
    for bucket in batch.layout.buckets:
        tokens = bucket.end - bucket.start
        assert tokens >= 0.8 * bucket.count * bucket.length
        assert (bucket.slots_T is None) == (tokens == bucket.count * bucket.length)
        if bucket.slots_T is not None:
            assert len(set(bucket.slots_T.tolist())) == tokens


@given(few)
def test_each_policy_token_is_predicted_from_the_token_before_it(lengths):
    samples, batch = batch_of(lengths)
    seen: dict[int, list[tuple]] = {i: [] for i in range(len(samples))}
    columns = [vars(batch)[f"{name}_N"] for name in ("rollout_logprobs", "advantages", "versions")]
    for n, i in enumerate(batch.sample_N.tolist()):
        source = int(batch.source_N[n])
        place = int(batch.position_ids_T[source]) + 1
        assert batch.input_ids_T[source + 1] == batch.target_N[n] == samples[i].token_ids[place]
        assert batch.position_ids_T[source + 1] == place
        seen[i].append((place, *(pytest.approx(column[n].item()) for column in columns)))
    for i, s in enumerate(samples):
        rows = zip(s.rollout_logprobs, s.advantages, s.versions, strict=True)
        wanted = [(t, *row) for t, row in enumerate(rows) if s.loss_mask[t]]
        assert seen[i] == wanted


def test_batches_without_policy_tokens_or_without_samples_are_packed_too():
    bare = TrainSample("s", "fake", (5, 6), (False, False), (0.0,) * 2, (0.0,) * 2, (-1, -1))
    for indices, tokens in (([0], 2), ([], 1)):
        batch = pack([bare], indices, CPU)
        assert batch.source_N.shape == batch.versions_N.shape == (0,)
        assert batch.input_ids_T.shape == (tokens,)
        assert batch.target_N.dtype == batch.input_ids_T.dtype == torch.long


def fields(**changes) -> dict:
    base = {
        "token_ids": (5, 6),
        "loss_mask": (False, True),
        "rollout_logprobs": (0.0, -1.0),
        "advantages": (0.0, 1.0),
        "versions": (-1, 0),
    }
    return {"id": "s7", "env": "fake", **base, **changes}


@pytest.mark.parametrize("name", ["loss_mask", "rollout_logprobs", "advantages", "versions"])
def test_a_sample_whose_lists_differ_in_length_is_refused_by_name(name):
    longer = (*fields()[name], 0)
    with pytest.raises(ValueError, match="sample s7: its lists differ in length"):
        TrainSample(**fields(**{name: longer}))


def test_a_sample_that_trains_on_its_first_token_is_refused():
    with pytest.raises(ValueError, match="sample s7: the first token"):
        TrainSample(**fields(loss_mask=(True, True)))
