"""Where two transcripts part, and what of an environment's state could not travel."""

import asyncio
import socket
import threading

import pytest

from rl.env_tools.check.portable import unpicklable
from rl.env_tools.check.transcript import parting


def transcript(ids=("a", "b"), opening="go", said="42", solved=1.0):
    episode = {
        "opening": [{"role": "user", "content": opening}],
        "said": [
            {"role": "assistant", "content": "", "tool_calls": ["add"]},
            {"role": "tool", "content": said, "name": "add"},
        ],
        "rewards": {"solved": solved},
    }
    return {"tasks": {"train": list(ids)}, "episodes": {"0/expert": episode}}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (transcript(ids=("a", "c")), "tasks('train', seed=0) gave task b, and then task c"),
        (transcript(ids=("a",)), "tasks('train', seed=0) gave task b, and then task None"),
        (transcript(opening="come"), "reset() gave 'go', and then 'come'"),
        (transcript(said="43"), "tool 'add' gave '42', and then '43'"),
        (transcript(solved=0.5), "score() gave {'solved': 1.0}, and then {'solved': 0.5}"),
        (transcript(opening="come", solved=0.5), "reset() gave 'go', and then 'come'"),
    ],
)
def test_the_first_difference_is_told(other, sentence):
    assert str(parting(transcript(), other)) == sentence


def test_equal_transcripts_do_not_part():
    assert parting(transcript(), transcript()) is None


def test_a_long_message_is_cut():
    parted = parting(transcript(said="x" * 5000), transcript(said="y" * 5000))
    assert parted is not None and len(str(parted)) < 400


@pytest.mark.parametrize("value", [{"rows": [1, 2]}, {1, 2}, None, b"x"], ids=repr)
def test_plain_data_can_travel(value):
    assert unpicklable(value) is None


def test_a_handle_is_let_pass_wherever_it_is():
    with socket.socket() as handle:
        assert unpicklable({"open": [handle, threading.Lock(), asyncio.Event()]}) is None


@pytest.mark.parametrize(
    "value",
    [lambda: 1, (n for n in range(3)), {"judge": lambda: 1}],
    ids=["lambda", "gen", "nested"],
)
def test_a_function_or_generator_made_on_the_way_is_not(value):
    assert unpicklable(value) is not None
