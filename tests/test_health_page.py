"""The dashboard's health page: heartbeats, the waiting-for table, and logs that stay within their folder."""

import os
from pathlib import Path

import pytest
from fakes import waiting
from test_run_data import STATUS, make_run

from rl.dashboard.health import actor_rows, health_figures, phase_rows, troubles, waiting_rows
from rl.dashboard.log_tail import TAIL_BYTES, log_names, log_tail

ACTOR = {"name": "engine-0", "pid": 7, "node": "10.0.0.1", "seen": 99.0, "asked": None, "fault": ""}
ACTORS = [
    ACTOR,
    ACTOR | {"name": "host-0", "asked": 60.0, "seen": 59.0},
    ACTOR | {"name": "host-1", "fault": "the process has died"},
    ACTOR | {"name": "learner", "pid": None, "node": "", "seen": None, "asked": 99.0},
]


def run_with(folder: Path, **changes: object):
    run = make_run(folder, status=STATUS | changes)
    os.utime(folder / "status.json", (100.0, 100.0))
    run.refresh()
    return run


def test_every_actor_says_whether_it_answers_where_it_is_and_when_it_was_seen(tmp_path):
    run = run_with(tmp_path / "demo", actors=ACTORS)
    rows = {row["name"]: row for row in actor_rows(run, now=101.0)}
    assert list(rows)[-1] == "engine-0", "those in trouble come first"
    assert rows["engine-0"] == {
        **{"name": "engine-0", "state": "answers", "serves": "version 2"},
        **{"pid": "7", "node": "10.0.0.1", "seen": "2 s"},
    }
    assert rows["host-0"]["state"] == "no answer for 41 s"
    assert rows["host-1"]["state"] == "failed: the process has died"
    assert (rows["learner"]["state"], rows["learner"]["seen"]) == ("not heard of yet", "never")
    assert troubles(run, now=101.0) == [
        "host-0: no answer for 41 s.",
        "host-1: failed: the process has died.",
    ]


def test_of_a_run_that_is_over_nothing_is_in_trouble(tmp_path):
    run = make_run(
        tmp_path / "demo", status=STATUS | {"actors": ACTORS}, summary={"status": "finished"}
    )
    run.refresh()
    assert troubles(run) == []
    assert health_figures(run)[0].value == "finished"
    assert next(r for r in actor_rows(run) if r["name"] == "engine-0")["seen"] == "1 s"


def test_what_was_in_flight_when_a_run_ended_is_no_failure(tmp_path):
    flying = {"waiting": [vars(waiting("a"))], "counts": {"units": {"tool": 2}}, "in_flight": 2}
    run = make_run(
        tmp_path / "demo",
        status=STATUS | {"actors": ACTORS} | flying,
        summary={"status": "finished"},
    )
    run.refresh()
    assert {row["state"] for row in actor_rows(run)} == {"ended with the run", "not heard of"}
    assert waiting_rows(run) == phase_rows(run) == []
    assert {f.name: f.value for f in health_figures(run)}["in flight"] == "0"


def test_a_status_that_is_old_and_a_controller_that_is_silent_are_told(tmp_path):
    run = run_with(tmp_path / "demo", silent=["controller-0"])
    assert troubles(run, now=150.0) == [
        "The run's own loop wrote its status 50 s ago; what stands here is as of then.",
        "controller-0 did not answer when it was asked what its episodes wait for.",
    ]


def test_what_is_waited_for_is_told_in_times_of_what_is_usual(tmp_path):
    rows = [vars(waiting("a", seconds=8.0, p99=4.0)), vars(waiting("b", p99=None, version=None))]
    run = run_with(tmp_path / "demo", waiting=rows, counts={"units": {"tool": 2, "reset": 1}})
    first, second = waiting_rows(run)
    assert (first["times"], first["p99"], first["then"]) == ("2.0", "4.00", "failed: env_fault")
    assert (second["times"], second["version"]) == ("", "")
    assert phase_rows(run) == [{"env": "units", "all": "3", "phases": "reset 1, tool 2"}]


def test_a_log_s_end_is_shown_from_a_line_s_beginning(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "engine-0.log").write_bytes(b"short\n\xff\xfe")
    assert log_tail(tmp_path, "engine-0.log") == "short\n��"
    lines = b"".join(b"line %d\n" % n for n in range(100_000))
    (tmp_path / "logs" / "long.log").write_bytes(lines)
    shown = log_tail(tmp_path, "long.log")
    assert shown is not None and len(shown) < TAIL_BYTES + 100
    assert shown.startswith("(what is before is not shown)\nline ") and shown.endswith("99999\n")
    assert log_names(tmp_path) == ["engine-0.log", "long.log"]


@pytest.mark.parametrize(
    "name", ["../config.toml", "link.log", "pipe.log", "folder", "", ".", "/etc/hosts"]
)
def test_only_plain_files_of_the_log_folder_are_read(tmp_path, name):
    logs = tmp_path / "logs"
    (logs / "folder").mkdir(parents=True)
    (tmp_path / "config.toml").write_text("secret = 1\n", encoding="utf-8")
    (logs / "link.log").symlink_to(tmp_path / "config.toml")
    os.mkfifo(logs / "pipe.log")
    assert log_names(tmp_path) == []
    assert log_tail(tmp_path, name) is None


def test_a_run_without_logs_has_none(tmp_path):
    assert log_names(tmp_path) == [] and log_tail(tmp_path, "x") is None
