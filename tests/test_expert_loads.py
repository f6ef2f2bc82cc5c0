"""The dashboard's experts: heat maps of loads, however many experts and steps, whatever the file holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run_data import make_run

from rl.dashboard.expert_loads import MAX_ROWS, MAX_STEPS, ExpertLoads, heat_map, held, read_loads


def read(record: dict) -> ExpertLoads | None:
    return read_loads(json.dumps(record).encode())


def loads(step: int, layers: int = 1, computing: int = 3, zero: int = 1) -> ExpertLoads:
    layer = [0.3] * computing + [0.6] * zero
    found = read({"step": step, "computing": computing, "loads": [layer] * layers})
    assert found is not None
    return found


def test_a_cell_is_an_expert_s_load_over_the_mean_of_those_that_compute():
    one = read({"step": 7, "computing": 2, "loads": [[0.1, 0.3, 0.8]]})
    assert one is not None
    options = heat_map([one], 0)
    assert options is not None
    assert options["series"][0]["data"] == [[0, 0, 0.5], [0, 1, 1.5], [0, 2, 4.0]]
    assert options["xAxis"]["data"] == ["7"] and options["yAxis"]["data"] == ["0", "1", "zero 0"]
    assert heat_map([one], 1) is None and heat_map([], 0) is None


def test_many_experts_and_steps_are_thinned_and_the_last_step_is_shown():
    found = [loads(step, computing=512, zero=256) for step in range(1, 131)]
    options = heat_map(found, 0)
    assert options is not None
    assert len(options["yAxis"]["data"]) <= MAX_ROWS + 1
    assert len(options["xAxis"]["data"]) <= MAX_STEPS and options["xAxis"]["data"][-1] == "130"
    assert options["yAxis"]["data"][0] == "0-15" and options["yAxis"]["data"][-1] == "zero 240-255"
    assert {cell[2] for cell in options["series"][0]["data"]} == {1.0, 2.0}


def test_a_long_run_holds_some_of_its_steps_and_the_last():
    kept = held([loads(step) for step in range(1, 2001)])
    assert 100 < len(kept) <= 400 and kept[-1].step == 2000
    steps = [one.step for one in kept]
    assert steps == sorted(set(steps))


def test_loads_of_another_model_are_left_out():
    options = heat_map([loads(1, computing=5), loads(2), loads(3)], 0)
    assert options is not None and options["xAxis"]["data"] == ["2", "3"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats(0, 2) | st.just("x"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=12,
)


@given(step=json_values, computing=json_values, found=json_values)
def test_a_line_of_any_shape_is_loads_or_nothing(step, computing, found):
    one = read({"step": step, "computing": computing, "loads": found})
    if one is not None:
        json.dumps(heat_map([one], 0), allow_nan=False)


@pytest.mark.parametrize(
    "odd", [{}, {"step": 1, "computing": 9, "loads": [[0.5]]}, {"loads": [[]]}]
)
def test_odd_lines_are_counted(tmp_path, odd):
    run = make_run(tmp_path / "demo")
    good = {"step": 1, "computing": 1, "loads": [[1.0]]}
    (run.folder / "experts.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps(odd) + "\n", encoding="utf-8"
    )
    run.refresh()
    assert [one.step for one in run.experts] == [1]
    assert run.problems == ["experts.jsonl: 1 lines could not be read and are left out"]
