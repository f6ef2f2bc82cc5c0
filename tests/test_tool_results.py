"""A tool's result as text: data as JSON, texts and what prints itself as they are."""

import collections
import dataclasses
import datetime
import enum

import numpy as np
import pytest
from pydantic import BaseModel

from envs.tool_result import result_text


class Kind(enum.Enum):
    SMALL = "small"


class Model(BaseModel):
    n: int = 1
    tags: list[str] = ["é"]


@dataclasses.dataclass
class Row:
    model: Model
    pair: tuple[int, int] = (1, 2)


@dataclasses.dataclass
class Printed:
    n: int = 1

    def __str__(self) -> str:
        return "a row of its own words"


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("text", "text"),
        (3, "3"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        (np.float64(0.1), "0.1"),
        (b"bytes", "bytes"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (Printed(), "a row of its own words"),
        ({"a": None, "é": True}, '{"a": null, "é": true}'),
        (["a", 1], '["a", 1]'),
        ((1, 2), "[1, 2]"),
        ({7}, "[7]"),
        ({"a": 1}.items(), '[["a", 1]]'),
        ({"a": 1}.values(), "[1]"),
        ((n for n in range(2)), "[0, 1]"),
        (Model(), '{"n": 1, "tags": ["é"]}'),
        ([Row(Model())], '[{"model": {"n": 1, "tags": ["é"]}, "pair": [1, 2]}]'),
        (Point(1, 2), '{"x": 1, "y": 2}'),
        (Kind.SMALL, "small"),
        (np.arange(3), "[0, 1, 2]"),
        (
            {"at": datetime.date(2020, 1, 2), "n": np.int64(3), "kind": Kind.SMALL},
            '{"at": "2020-01-02", "n": 3, "kind": "small"}',
        ),
        ({(1, 2): float("nan"), 3: b"x"}, '{"(1, 2)": "nan", "3": "x"}'),
    ],
)
def test_a_result_is_text_or_json(result, text):
    assert result_text(result) == text


def test_data_that_hold_themselves_are_the_authors_mistake():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(RecursionError):
        result_text(loop)
