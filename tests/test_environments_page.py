"""The dashboard's environments: the ledger and what else is known of each."""

import json

from test_run_data import STATUS, make_run, step_metrics

from rl.dashboard.environments import (
    changes,
    environment_charts,
    latency_rows,
    ledger_rows,
    names,
    selection_rows,
)

COUNTS = {
    "dispatched": 20,
    "in_flight": 2,
    "buffered": 0,
    "trained": 10,
    "filtered:zero_variance": 6,
    "stale:too_old": 2,
}
METRICS = {
    **{"mix/units/asked": 0.5, "mix/units/begun": 0.4, "mix/units/trained": 0.25},
    **{"env/units/breaker": 1.0, "env/units/retries": 3.0, "env/units/noise_gap": 0.2},
    "selection/all/played/trajectories": 18.0,
    "selection/units/trained/trajectories": 10.0,
    "selection/units/trained/tokens": 55.5,
}


def test_the_ledger_is_that_of_the_status_until_there_is_a_summary(tmp_path):
    status = STATUS | {"ledger": {"units": COUNTS}}
    run = make_run(tmp_path / "demo", status=status)
    run.refresh()
    [row] = ledger_rows(run)
    assert (row["env"], row["dispatched"], row["trained"], row["share"]) == (
        "units",
        "20",
        "10",
        "50%",
    )
    assert (row["filtered"], row["in_flight"]) == ("6", "2")
    assert row["reasons"] == "filtered: zero variance 6; stale: too old 2"
    final = {"all": COUNTS, "units": COUNTS | {"in_flight": 0, "cancelled": 2}}
    done = make_run(tmp_path / "done", status=status, summary={"ledger": final})
    done.refresh()
    [row] = ledger_rows(done)
    assert (row["in_flight"], row["cancelled"]) == ("0", "2")


def test_books_that_do_not_balance_say_so(tmp_path):
    run = make_run(tmp_path / "demo", summary={"ledger": {"units": COUNTS | {"trained": 7}}})
    run.refresh()
    assert ledger_rows(run)[0]["reasons"].startswith("NOT ACCOUNTED FOR 3; ")


def test_books_of_another_shape_are_an_empty_table(tmp_path):
    for number, odd in enumerate(([], {"units": 3}, {"units": {"trained": "x"}}, {"units": {}})):
        run = make_run(tmp_path / str(number), summary={"ledger": odd})
        run.refresh()
        assert [row["trained"] for row in ledger_rows(run)] in ([], ["0"])
        json.dumps(environment_charts(run), allow_nan=False)


def test_latency_is_per_environment_and_phase_the_slowest_first(tmp_path):
    one = {"p50": 0.0123, "p95": 2.0, "p99": 3.0, "count": 1000}
    latency = {"units": {"tool": one | {"p99": 2.5}, "generate": one}}
    run = make_run(tmp_path / "demo", status=STATUS | {"latency": latency})
    run.refresh()
    assert [(r["phase"], r["p50"], r["p99"], r["count"]) for r in latency_rows(run)] == [
        ("generate", "0.0123", "3", "1,000"),
        ("tool", "0.0123", "2.5", "1,000"),
    ]
    assert names(run) == ["units"]


def test_mixture_breaker_gap_and_selection_come_from_the_metrics(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1, **METRICS), step_metrics(2, **METRICS)])
    run.refresh()
    found = environment_charts(run)
    mixture = {one["name"]: one["data"] for one in found["mixture"]["series"]}
    assert mixture == {"asked for": [0.5], "begun": [0.4], "trained on": [0.25]}
    assert set(found) == {"ledger", "mixture", "breaker", "retries", "gap"}
    rows = {row["id"]: row for row in selection_rows(run)}
    assert rows["units\ntrained"]["tokens"] == "55.50"
    assert rows["all\nplayed"]["count"] == "18" and rows["all\nplayed"]["reward"] == "-"


def test_what_supervision_has_changed_is_told_the_newest_first(tmp_path):
    run = make_run(tmp_path / "demo")
    spans = [{"lane": "run", "name": "engines start", "start": 0.0, "end": 1.0}]
    for n in (1, 2):
        at = {"start": 60.0 * n, "end": 60.0 * n}
        spans.append({"lane": "supervision", "name": "units", "what": f"change {n}", **at})
    (run.folder / "events.jsonl").write_text(
        "".join(json.dumps(s) + "\n" for s in spans), encoding="utf-8"
    )
    run.refresh()
    assert [(c["at"], c["what"]) for c in changes(run)] == [
        ("2.0 min", "change 2"),
        ("1.0 min", "change 1"),
    ]
