"""Choices of experts on their way: sorted by request in a step, joined over pieces and turns, in a sample."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import completion, sample, scored, trajectory, turn
from transformers import LongcatFlashConfig, Qwen3MoeConfig

from rl.actors.engine_client import joined
from rl.samples.samples import train_sample
from rollout.engine import Completion, VersionSpan
from rollout.families.registry import routing_layout
from rollout.routing import RoutingLayout
from rollout.routing_capture import RoutingCapture, StepBatch, Wanted
from trainer.sample import TrainSample

LAYOUT = RoutingLayout(layers=(1, 3), top_k=2, experts=8)
UNKNOWN = 255


def rows(*tokens: int) -> np.ndarray:
    """Choices by which a token is told from others: those of token t are all t."""
    return np.broadcast_to(np.array(tokens, np.uint8)[:, None, None], (len(tokens), 2, 2)).copy()


def test_a_layout_names_the_layers_that_have_a_router_and_counts_zero_experts():
    longcat = LongcatFlashConfig(num_layers=2, n_routed_experts=8, zero_expert_num=4, moe_topk=3)
    assert routing_layout(longcat) == RoutingLayout((0, 1), 3, 12)
    qwen = Qwen3MoeConfig(
        num_hidden_layers=6,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=2,
        mlp_only_layers=[3],
    )
    assert routing_layout(qwen) == RoutingLayout((1, 5), 2, 8)
    with pytest.raises(
        ValueError, match=r"engine.capture_routing: .* type 'dense' .* set it to false"
    ):
        routing_layout(SimpleNamespace(model_type="dense"))


@pytest.mark.parametrize(
    ("experts", "dtype"), [(8, "uint8"), (255, "uint8"), (256, "uint16"), (768, "uint16")]
)
def test_the_type_is_the_smallest_that_holds_every_expert_and_unknown(experts, dtype):
    layout = RoutingLayout((0,), 2, experts)
    assert layout.dtype == dtype
    assert layout.unknown(3).shape == (3, 1, 2) and (layout.unknown(3) > experts - 1).all()


class Server:
    """What an engine does to a `RoutingCapture`: it runs tokens through slots of a cache, in any order.

    A token's choices are random, and written down when it runs: `ran[id]` by place, the first time only.
    """

    block = 4

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.capture = RoutingCapture(LAYOUT, max_tokens=64, num_slots=256)
        self.blocks: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.ran: dict[str, dict[int, np.ndarray]] = {}
        self.given: dict[str, list[np.ndarray]] = {}

    def begin(self, id: str, blocks: list[int], computed: int = 0) -> None:
        self.blocks[id], self.computed[id] = blocks, computed
        self.ran.setdefault(id, {})
        self.given.setdefault(id, [])

    def step(
        self,
        tokens: dict[str, int],
        starts: dict[str, int],
        sampled: set[str],
        loaded: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        ids = list(tokens)
        choices = np.array(
            [[[self.rng.randrange(8)] * 2] * 2 for _ in range(sum(tokens.values()))], np.int64
        )
        choices += np.arange(2)[:, None] * 10
        for column, layer in enumerate(LAYOUT.layers):
            self.capture.write(layer, choices[:, column])
        slots: list[int] = []
        for id in ids:
            for place in range(self.computed[id], self.computed[id] + tokens[id]):
                self.ran[id].setdefault(place, choices[len(slots)])
                slots.append(self.blocks[id][place // self.block] * self.block + place % self.block)
        table = np.zeros((len(ids), 16), np.int32)
        for row, id in enumerate(ids):
            table[row, : len(self.blocks[id])] = self.blocks[id]
        batch = StepBatch(
            ids=ids,
            computed_R=np.array([self.computed[id] for id in ids]),
            scheduled_R=np.array([tokens[id] for id in ids]),
            slot_T=np.array(slots),
            blocks_RB=table,
            block_size=self.block,
            sampled_R=[id in sampled for id in ids],
        )
        out = self.capture.collect(Wanted(starts, loaded or {}), batch)
        assert out.spans.keys() == sampled
        for id, (start, end) in out.spans.items():
            self.given[id].append(out.rows[start:end])
        for id in ids:
            self.computed[id] += tokens[id]

    def assert_given(self, id: str, start: int, end: int) -> None:
        expected = np.stack([self.ran[id][place] for place in range(start, end)])
        assert (np.concatenate(self.given[id]) == expected).all()


def test_each_request_gets_its_own_rows_of_a_step_that_mixes_prompts_and_single_tokens():
    server = Server(seed=0)
    server.begin("a", [9, 2, 30])
    server.begin("b", [1, 4, 7])
    server.step({"a": 7}, {"a": 0}, {"a"})
    server.step({"b": 5, "a": 1}, {"b": 0, "a": 7}, {"a", "b"})
    server.step({"a": 1, "b": 1}, {"a": 8, "b": 5}, {"a", "b"})
    server.assert_given("a", 0, 9)
    server.assert_given("b", 0, 6)


def test_a_prompt_in_chunks_is_handed_out_whole_with_the_first_token():
    server = Server(seed=1)
    server.begin("a", [9, 2, 30])
    server.begin("b", [1])
    server.step({"a": 3}, {"a": 0}, set())
    server.step({"b": 2, "a": 4}, {"a": 0, "b": 0}, {"b"})
    server.step({"a": 3}, {"a": 0}, {"a"})
    server.assert_given("a", 0, 10)


def test_what_earlier_turns_know_is_not_handed_out_again():
    server = Server(seed=2)
    server.begin("a", [9, 2, 30])
    server.step({"a": 10}, {"a": 6}, {"a"})
    server.assert_given("a", 6, 10)


def test_a_request_that_shares_a_prefix_finds_its_choices_in_the_cache():
    server = Server(seed=3)
    server.begin("a", [9, 2, 30])
    server.step({"a": 8}, {"a": 0}, {"a"})
    server.begin("b", [9, 2, 31], computed=8)
    server.ran["b"] = dict(server.ran["a"])
    server.step({"b": 3}, {"b": 0}, {"b"})
    server.assert_given("b", 0, 11)


def test_a_token_computed_again_keeps_the_choices_that_were_handed_out():
    server = Server(seed=4)
    server.begin("a", [9, 2, 30])
    server.step({"a": 5}, {"a": 0}, {"a"})
    server.step({"a": 1}, {"a": 5}, {"a"})
    server.begin("a", [12, 13, 14])
    server.step({"a": 7}, {"a": 6}, {"a"})
    server.assert_given("a", 0, 7)


def test_what_was_loaded_from_elsewhere_is_unknown_and_so_is_what_shares_it():
    server = Server(seed=5)
    server.begin("old", [9, 2])
    server.step({"old": 8}, {"old": 0}, {"old"})
    server.begin("moved", [9, 2, 30], computed=9)
    server.step({"moved": 2}, {"moved": 0}, {"moved"}, {"moved": (0, 9)})
    server.begin("shares", [9, 2, 31], computed=8)
    server.step({"shares": 2}, {"shares": 0}, {"shares"})
    for id, unknown in (("moved", 9), ("shares", 8)):
        (given,) = server.given[id]
        assert (given[:unknown] == UNKNOWN).all()
        assert (given[unknown:] == [server.ran[id][n] for n in range(unknown, len(given))]).all()


def test_pieces_of_a_turn_are_joined_and_one_that_wrote_nothing_adds_nothing():
    pieces = [
        Completion((7,), (-1.0,), (VersionSpan(0, 0, 1),), "abort", routing=rows(0, 1)),
        Completion((), (), (), "abort", routing=rows()),
        Completion((8, 9), (-1.0,) * 2, (VersionSpan(0, 0, 2),), "stop", routing=rows(2, 3)),
    ]
    routing = joined(pieces).routing
    assert routing is not None and (routing == rows(0, 1, 2, 3)).all()
    assert joined([completion((1,)), completion((2,))]).routing is None


def test_a_sample_has_the_turns_choices_end_to_end_and_none_for_its_last_token():
    first = turn((1, 2), (3, 4), routing=rows(0, 1, 2))
    second = turn((6,), (7, 8, 9), routing=rows(3, 4, 5, 6))
    made = train_sample(trajectory(turns=(first, second)), 1.0)
    assert made.routing is not None and made.routing.dtype == np.uint8
    assert (made.routing == rows(0, 1, 2, 3, 4, 5, 6, UNKNOWN)).all()


def test_a_turn_without_choices_leaves_its_tokens_unknown_and_a_trajectory_without_any_has_none():
    known = turn((6,), (7, 8, 9), routing=rows(3, 4, 5, 6))
    made = train_sample(trajectory(turns=(turn((1, 2), (3, 4)), known)), 1.0)
    assert made.routing is not None
    assert (made.routing == rows(*[UNKNOWN] * 3, 3, 4, 5, 6, UNKNOWN)).all()
    made = train_sample(
        trajectory(turns=(turn((1, 2), (3, 4), routing=rows(0, 1, 2)), turn())), 1.0
    )
    assert made.routing is not None and (made.routing[3:] == UNKNOWN).all()
    assert train_sample(trajectory(), 1.0).routing is None


@pytest.mark.parametrize(
    "routing", [rows(0, 1), rows(*range(5))[0], rows(*range(5)).astype(np.int64)]
)
def test_a_sample_whose_choices_do_not_fit_is_refused_by_name(routing):
    fields = vars(sample("s7", 5, random.Random(0)))
    with pytest.raises(
        ValueError, match=r"sample s7: its routing is u?int\d+ of shape .*\(5, MoE layers"
    ):
        TrainSample(**{**fields, "routing": routing})


def test_choices_are_not_written_to_the_trajectory_file():
    played = scored("t1", turns=(turn(routing=rows(0, 1, 2)),))
    record = json.loads(played.as_json())
    assert record["turns"][0]["completion_ids"] == [3, 4] and "routing" not in record["turns"][0]
