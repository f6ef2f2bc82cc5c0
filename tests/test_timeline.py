"""The dashboard's timeline: lanes, bubbles and versions, out of whatever events.jsonl holds."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run_data import STATUS, make_run

from rl.dashboard.charts import Window
from rl.dashboard.pages.timeline import View, colour, lane_chart, version_chart, zoomed_to
from rl.dashboard.run_data import RunData, Span
from rl.dashboard.timeline import (
    _ENV_BARS,
    MAX_BARS,
    MAX_LANES,
    Bar,
    extent,
    idle_share,
    serving_now,
    timeline,
    version_lines,
)


def run_with(folder: Path, *spans: Span, **files: object) -> RunData:
    """A run folder with these events."""
    run = make_run(folder, **files)
    lines = [
        {"lane": s.lane, "name": s.name, "start": s.start, "end": s.end, "what": s.what}
        for s in spans
    ]
    (folder / "events.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    run.refresh()
    return run


def texts(run: RunData, start: float, end: float) -> dict[str, list[str]]:
    found = timeline(run, start, end)
    return {
        name: [bar.text for bar in found.bars if bar.lane == number]
        for number, name in enumerate(found.lanes)
    }


RUN = (
    Span("run", "engines start", 90.0, 100.0),
    Span("learner", "wait for batch", 100.0, 104.0),
    Span("learner", "step 1", 104.0, 109.0),
    Span("learner", "checkpoint 1", 109.0, 110.0),
    Span("sync", "version 1", 109.0, 110.0),
    Span("engine-0", "version 0", 100.0, 109.5),
    Span("engine-0", "load version 1", 109.5, 110.0),
    Span("engine-0", "idle", 100.0, 102.0),
    Span("engine-10", "version 0", 100.0, 110.0),
    Span("engine-2", "version 0", 100.0, 110.0),
    Span("supervision", "units", 105.0, 105.0, "environment 'units': 4 of 4 episodes failed"),
    Span("window", "versions 0 1", 110.0, 110.0),
    Span("rollout", "units", 100.0, 105.0),
    Span("rollout", "units", 100.0, 110.0),
)


def test_lanes_are_in_order_and_say_what_was_done(tmp_path):
    found = texts(run_with(tmp_path / "demo", *RUN), 90.0, 110.0)
    assert list(found) == [
        *("run", "learner", "sync", "engine-0", "engine-2", "engine-10", "supervision", "units")
    ]
    assert found["learner"] == [
        *("learner: wait for batch", "learner: step 1", "learner: checkpoint 1")
    ]
    assert found["engine-0"] == [
        *("engine-0: idle", "engine-0: version 0", "engine-0: load version 1")
    ]
    assert found["supervision"] == [
        "supervision: units (environment 'units': 4 of 4 episodes failed)"
    ]
    assert found["units"][-1].startswith("units: 1 groups in flight")


def test_a_version_has_one_colour_wherever_it_is(tmp_path):
    found = timeline(run_with(tmp_path / "demo", *RUN), 90.0, 110.0)
    by_text = {bar.text: colour(bar) for bar in found.bars}
    assert by_text["learner: step 1"] == by_text["sync: version 1"]
    assert by_text["learner: step 1"] != by_text["engine-0: version 0"]
    assert by_text["learner: wait for batch"] == by_text["engine-0: idle"]


def test_idle_shares_count_only_what_is_within_the_stretch(tmp_path):
    run = run_with(tmp_path / "demo", *RUN)
    whole = timeline(run, 90.0, 110.0).idle
    assert whole == pytest.approx(
        {"learner": 0.4, "engine-0": 0.25, "engine-2": 0.0, "engine-10": 0.0}
    )
    assert timeline(run, 100.0, 104.0).idle["learner"] == 1.0
    assert timeline(run, 104.0, 109.0).idle["learner"] == 0.0


def test_an_engine_s_version_is_shown_before_its_end_is_written(tmp_path):
    status = STATUS | {"time": 130.0, "engines": {"engine-0": 1, "engine-1": None, "engine-2": 0}}
    run = run_with(tmp_path / "demo", *RUN, status=status)
    assert serving_now(run) == [
        Span("engine-0", "version 1", 110.0, 130.0),
        Span("engine-2", "version 0", 100.0, 130.0),
    ]
    assert extent(run) == (90.0, 130.0)
    done = run_with(tmp_path / "done", *RUN, status=status, summary={"status": "finished"})
    assert serving_now(done) == [] and extent(done) == (90.0, 110.0)


def test_what_is_too_small_to_be_seen_is_drawn_together_and_nothing_is_left_out(tmp_path):
    spans = [Span("learner", f"step {n}", float(n), n + 0.5) for n in range(10_000)]
    spans += [Span("rollout", f"env{n % 3}", float(n), n + 5.0) for n in range(10_000)]
    run = run_with(tmp_path / "demo", *spans)
    far = timeline(run, 0.0, 10_000.0)
    assert len(far.bars) <= MAX_BARS
    steps = [bar for bar in far.bars if bar.lane == 0]
    assert (
        sum(1 + int((b.text + " and 0 more").split(" and ")[1].split()[0]) for b in steps) == 10_000
    )
    assert far.idle["learner"] == pytest.approx(0.5, abs=0.01)
    near = [bar for bar in timeline(run, 100.0, 110.0).bars if bar.lane == 0]
    assert [bar.text for bar in near] == [f"learner: step {n}" for n in range(100, 111)]


def test_bubbles_are_cut_out_of_an_engine_s_versions(tmp_path):
    run = run_with(
        tmp_path / "demo",
        Span("engine-0", "version 0", 0.0, 10.0),
        *(Span("engine-0", "idle", at, at + 1) for at in (0.0, 3.0, 4.0, 9.5)),
        Span("engine-0", "version 1", 10.0, 20.0),
    )
    bars = timeline(run, 0.0, 20.0).bars
    assert [(b.start, b.end) for b in bars if b.text.endswith("version 0")] == [(1, 3), (5, 9.5)]
    assert [(b.start, b.end) for b in bars if b.text.endswith("version 1")] == [(10.5, 20)]


def test_groups_in_flight_are_counted_at_every_moment(tmp_path):
    run = run_with(
        tmp_path / "demo",
        Span("rollout", "a", 0.0, 10.0),
        Span("rollout", "a", 2.5, 5.0),
        Span("rollout", "b", 0.0, 0.0),
    )
    bars = timeline(run, 0.0, 10.0).bars
    assert {bar.lane for bar in bars} == {0}
    counted = {bar.start: bar.level for bar in bars}
    assert counted[0.0] == pytest.approx(0.5) and counted[2.5] == pytest.approx(1.0)
    assert counted[5.0] == pytest.approx(0.5) and len(bars) == _ENV_BARS // 2


def test_the_versions_over_time(tmp_path):
    lines = version_lines(run_with(tmp_path / "demo", *RUN))
    assert lines == {
        "learner": [[109.0, 1.0]],
        "newest published": [[110.0, 1.0]],
        "oldest live": [[110.0, 0.0]],
    }


times = st.floats(0, 1e11, allow_nan=False) | st.sampled_from([0.0, 1.0, 2.0])
hostile = st.builds(
    lambda lane, name, start, seconds: Span(lane, name, start, min(start + seconds, 1e11)),
    st.sampled_from(
        ["learner", "engine-0", "engine-x", "rollout", "window", ":x", "", "engine-9" * 9]
    ),
    st.sampled_from(["step 3", "version 999999999", "load version", "idle", "", "<b>", "\ud83d"]),
    times,
    st.floats(0, 1e11),
)


@given(spans=st.lists(hostile, max_size=12), start=times, length=st.floats(1e-6, 1e11))
def test_no_event_can_break_the_page(tmp_path_factory, spans, start, length):
    run = RunData(tmp_path_factory.mktemp("run"))
    run.spans = list(spans)
    found = timeline(run, start, start + length)
    assert len(found.lanes) <= MAX_LANES and all(
        0 <= bar.lane < len(found.lanes) for bar in found.bars
    )
    assert all(0 <= share <= 1 for share in found.idle.values())
    if (stretch := extent(run)) is not None:
        window = View(run, None, None).window(stretch[1] - stretch[0])
        assert window.end > window.start
        for options in (lane_chart(found, start, window), version_chart(run, start, window)):
            json.dumps(options, allow_nan=False)


def test_events_of_no_time_are_left_out_and_counted(tmp_path):
    run = run_with(tmp_path / "demo", Span("a", "b", 5.0, 4.0), Span("a", "b", 1.0, 1e300))
    assert run.spans == []
    assert run.problems == ["events.jsonl: 2 lines could not be read and are left out"]


def test_the_address_names_the_stretch(tmp_path):
    view = View(RunData(tmp_path / "demo"), None, None)
    assert view.window(500.0) == Window(0.0, 500.0, 500.0)
    assert view.address == "/run/demo/timeline"
    view.zoom(20.0, 40.0, 500.0)
    assert (view.address, view.window(800.0)) == (
        "/run/demo/timeline?from=100&to=200",
        Window(100.0, 200.0, 800.0),
    )
    view.zoom(50.0, 100.0, 800.0)
    assert view.address == "/run/demo/timeline?from=400", "at the edge it follows the run"
    assert view.window(900.0) == Window(400.0, 900.0, 900.0)
    view.start = -60.0
    assert view.window(900.0) == Window(840.0, 900.0, 900.0)
    for start, end in ((1e9, None), (None, -5.0), (-1e9, 1e9), (50.0, 40.0)):
        odd = View(view.run, start, end).window(900.0)
        assert 0 <= odd.start < odd.end <= 900.0


def test_a_zoom_event_is_read_with_and_without_a_batch():
    assert zoomed_to({"start": 1, "end": 2}) == (1.0, 2.0)
    assert zoomed_to({"batch": [{"start": 10, "end": 20.5}]}) == (10.0, 20.5)
    for odd in (None, [], {}, {"batch": []}, {"batch": ["x"]}, {"start": "1", "end": 2}):
        assert zoomed_to(odd) is None


def test_only_learner_and_engines_are_idle():
    assert idle_share("sync", [Span("sync", "version 1", 0.0, 1.0)], 0.0, 1.0) is None
    assert colour(Bar(0, 0.0, 1.0, "flight", 1.0, "")) == "#56B4E9FF"
