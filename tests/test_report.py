"""`dorado report`: one file of a run, whatever it holds; and the charts in it."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from fakes import scored
from hypothesis import given
from hypothesis import strategies as st
from recorded_run import RecordedRun
from test_drill_down import evaluated_run, evaluation
from test_run_data import STATUS, make_run, step_metrics
from typer.testing import CliRunner

from rl.cli import app
from rl.dashboard.report import report
from rl.dashboard.run_data import RunData
from rl.dashboard.series import Series
from rl.dashboard.svg_lines import Lines, svg

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """The names of all tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_it_needs_no_network_and_holds_no_script(tmp_path):
    rows = [evaluation(0, "before", 0.2), evaluation(2, "step_2", 0.6), evaluation(3, "after", 0.5)]
    run = evaluated_run(tmp_path, rows, [step_metrics(n) for n in (1, 2, 3)])
    text = report(run)
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    assert {"script", "img", "link", "iframe"}.isdisjoint(Tags(text).found)
    assert "best 0.60 at version 2" in text and ">best</text>" in text
    for drawing in re.findall(r"<svg.*?</svg>", text):
        ET.fromstring(drawing)


def test_what_is_hostile_is_text(tmp_path):
    recorded = RecordedRun(tmp_path)
    recorded.group("g", [scored(HOSTILE, fault=HOSTILE)], env=HOSTILE)
    metrics = step_metrics(1, **{f"rollout/{HOSTILE}/reward": 1.0})
    (recorded.path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    (recorded.path / "status.json").write_text(
        json.dumps(STATUS | {"stage": HOSTILE}), encoding="utf-8"
    )
    (recorded.path / "config.toml").write_text(f"mode = '{HOSTILE}'\n", encoding="utf-8")
    run = RunData(recorded.path, tmp_path / "cache")
    run.refresh()
    run.texts.grow(60)
    text = report(run)
    assert {"script", "img"}.isdisjoint(Tags(text).found)
    assert "&lt;script&gt;" in text
    recorded.close()


def test_a_run_that_has_not_begun_has_a_report(tmp_path):
    run = make_run(tmp_path / "demo")
    run.refresh()
    assert "no values" in report(run)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_any_values_are_drawn_within_the_picture(points, share):
    points.sort()
    one = Series([step for step, _ in points], [value for _, value in points])
    [drawing] = re.findall(r"<svg.*?</svg>", svg(Lines("a & b", [("x < y", one)], share=share)))
    line = ET.fromstring(drawing).find("polyline")
    assert line is not None
    for place in line.attrib["points"].split():
        assert all(abs(float(part)) < 1e306 for part in place.split(","))


def test_the_command_writes_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_run(tmp_path / "demo", [step_metrics(1)])
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "demo"), "--out", str(tmp_path / "r.html")]
    )
    assert done.exit_code == 0, done.output
    assert "mean reward" in (tmp_path / "r.html").read_text(encoding="utf-8")
    wrong = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert wrong.exit_code == 2 and "this is no run folder" in wrong.output
