"""Packing: each sample once, no row too long, nothing attends across samples."""

import random

import pytest
import torch
from fakes import sample
from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import pack, plan_rows
from trainer.sample import TrainSample

lengths = st.lists(st.integers(1, 50), max_size=40)


def batch_of(lengths: list[int], row_tokens: int):
    rng = random.Random(0)
    samples = [sample(f"s{i}", n, rng, version=i % 3) for i, n in enumerate(lengths)]
    rows = plan_rows(lengths, row_tokens)
    return samples, rows, pack(samples, rows)


@given(lengths, st.integers(50, 120))
def test_rows_cover_each_sample_once_and_are_never_too_long(lengths, row_tokens):
    rows = plan_rows(lengths, row_tokens)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= row_tokens for row in rows)
    assert all(rows)


@given(lengths, st.integers(50, 120))
def test_rows_are_more_than_half_full_but_one(lengths, row_tokens):
    rows = plan_rows(lengths, row_tokens)
    half_empty = [r for r in rows if sum(lengths[i] for i in r) <= row_tokens / 2]
    assert len(half_empty) <= 1


def test_the_example_of_the_docstring():
    assert plan_rows([5, 3, 4], 8) == [[0, 1], [2]]


def test_a_sample_longer_than_a_row_is_refused_with_the_setting_to_change():
    with pytest.raises(
        ValueError, match=r"9 tokens does not fit a row of 8 \(learner.row_tokens\)"
    ):
        plan_rows([3, 9], 8)


@given(st.lists(st.integers(3, 12), min_size=1, max_size=6))
def test_rows_hold_each_samples_tokens_with_positions_from_zero(lengths):
    samples, rows, batch = batch_of(lengths, 16)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            assert tuple(batch.input_ids_RL[r, start:end].tolist()) == samples[i].token_ids
            assert batch.position_ids_RL[r, start:end].tolist() == list(range(lengths[i]))
            assert set(batch.segment_ids_RL[r, start:end].tolist()) == {i}
            start = end


@given(st.lists(st.integers(3, 12), min_size=1, max_size=6))
def test_each_policy_token_is_predicted_from_the_token_before_it(lengths):
    samples, _, batch = batch_of(lengths, 16)
    seen: dict[int, list[tuple]] = {i: [] for i in range(len(samples))}
    columns = [vars(batch)[f"{name}_N"] for name in ("rollout_logprobs", "advantages", "versions")]
    for n, i in enumerate(batch.sample_N.tolist()):
        r, c = batch.row_N[n], batch.column_N[n]
        assert batch.segment_ids_RL[r, c] == batch.segment_ids_RL[r, c + 1] == i
        assert batch.input_ids_RL[r, c + 1] == batch.target_N[n]
        place = int(batch.position_ids_RL[r, c]) + 1
        seen[i].append((place, *(pytest.approx(column[n].item()) for column in columns)))
    for i, s in enumerate(samples):
        rows = zip(s.rollout_logprobs, s.advantages, s.versions, strict=True)
        wanted = [(t, *row) for t, row in enumerate(rows) if s.loss_mask[t]]
        assert seen[i] == wanted


@given(st.lists(st.integers(3, 12), min_size=1, max_size=6))
def test_attention_is_causal_and_never_crosses_from_one_sample_into_another(lengths):
    _, _, batch = batch_of(lengths, 16)
    mask = batch.attention_mask()
    segments = batch.segment_ids_RL
    r_count, length = segments.shape
    assert mask.shape == (r_count, 1, length, length)
    for r, _, q, k in mask.nonzero().tolist():
        assert k <= q
        assert segments[r, q] == segments[r, k]
    for i, n in enumerate(lengths):
        inside = mask[:, 0] & (segments == i)[:, :, None] & (segments == i)[:, None, :]
        assert inside.sum() == n * (n + 1) // 2


def test_padding_attends_to_itself_alone():
    _, _, batch = batch_of([10, 4], 10)
    mask, padding = batch.attention_mask()[:, 0], batch.segment_ids_RL < 0
    assert padding.sum() == 6
    assert mask[padding].sum() == 6, "one key each, so that no row of the softmax is empty"


def test_a_batch_without_policy_tokens_is_packed_too():
    bare = TrainSample("s", "fake", (5, 6), (False, False), (0.0,) * 2, (0.0,) * 2, (-1, -1))
    batch = pack([bare], [[0]])
    assert batch.row_N.shape == batch.versions_N.shape == (0,)
    assert batch.target_N.dtype == torch.long


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
