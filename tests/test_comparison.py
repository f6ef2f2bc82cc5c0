"""Runs compared: which belong together, and how sure it is that one is better."""

import json
import statistics

import pytest
from test_drill_down import evaluation
from test_run_data import make_run, step_metrics

from rl.dashboard.comparison import HELD_OUT, band, groups, result, verdicts
from rl.dashboard.run_data import RunData
from rl.dashboard.runs_table import SPARK_WIDTH, run_row


def seeded(tmp_path, name: str, seed: int, rate: float, more: str = "") -> RunData:
    run = make_run(tmp_path / name, [step_metrics(1), step_metrics(2)])
    (run.folder / "config.toml").write_text(
        f'name = "{name}"\nseed = {seed}\nsteps = 4\n{more}', encoding="utf-8"
    )
    rows = [evaluation(0, "before", 0.2), evaluation(2, "after", rate)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "evaluations.jsonl").write_text(text, encoding="utf-8")
    run.refresh()
    return run


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path):
    runs = [seeded(tmp_path, f"a{n}", n, 0.5 + 0.01 * n) for n in range(3)]
    other = seeded(tmp_path, "b", 0, 0.9, "mode = 'sync'\n")
    first, second = groups([runs[0], other, *runs[1:]])
    assert ([run.name for run in first.runs], first.name) == (["a0", "a1", "a2"], "a0 (3 seeds)")
    assert second.name == "b"
    line, around = band(first, HELD_OUT)
    assert (line.steps, line.values) == ([0, 2], pytest.approx([0.2, 0.51]))
    spread = statistics.stdev([0.5, 0.51, 0.52])
    assert around[1] == pytest.approx((2.0, 0.51 - spread, 0.51 + spread))


def test_one_run_against_another_is_as_sure_as_their_intervals_allow(tmp_path):
    runs = [seeded(tmp_path, "a", 0, 0.6), seeded(tmp_path, "b", 0, 0.5, "mode = 'sync'\n")]
    [one] = verdicts(groups(runs))
    error = 2**0.5 * 0.2 / (2 * 1.96)
    assert one.probability == pytest.approx(
        statistics.NormalDist(0.1, error).cdf(0) * -1 + 1, abs=0.01
    )
    assert one.difference == pytest.approx(0.1)
    [other] = verdicts(groups(runs[::-1]))
    assert other.probability == pytest.approx(1 - one.probability, abs=0.01)
    same = [runs[0], seeded(tmp_path, "c", 0, 0.6, "mode = 'dora'\n")]
    assert verdicts(groups(same))[0].probability == pytest.approx(0.5, abs=0.02)


def test_seeds_that_differ_much_make_it_less_sure(tmp_path):
    def probability(spread: float) -> float:
        folder = tmp_path / f"{spread}"
        runs = [seeded(folder, f"a{n}", n, 0.6 + spread * (n - 1)) for n in range(3)]
        runs += [seeded(folder, f"b{n}", n, 0.5, "mode = 'sync'\n") for n in range(3)]
        return verdicts(groups(runs))[0].probability

    assert probability(0.01) > 0.9 > probability(0.15) > 0.5


def test_without_evaluations_the_reward_is_compared_and_never_with_a_pass_rate(tmp_path):
    plain = make_run(tmp_path / "p", [step_metrics(n) for n in (1, 2)])
    plain.refresh()
    [group] = groups([plain])
    found = result(group)
    assert found is not None and (found.mean, found.what) == (0.5, "reward of the last 10 steps")
    assert verdicts(groups([plain, seeded(tmp_path, "a", 0, 0.6)])) == []


def test_a_row_of_the_table_has_what_it_is_sorted_by(tmp_path):
    more = "[model.init]\nfamily = 'longcat_flash'\npreset = 'tiny'\n[[env]]\nid = 'orders'\n"
    row = run_row(seeded(tmp_path, "a", 7, 0.6, more), "/run/a", now=1e9)
    assert (row["seed"], row["held_out"], row["best"], row["at"]) == (7, 0.6, 0.6, 2)
    assert (row["model"], row["envs"]) == ("longcat_flash tiny", "orders")
    assert str(row["spark"]).startswith("0.0,") and f"{SPARK_WIDTH}.0," in str(row["spark"])
    empty = make_run(tmp_path / "empty")
    empty.refresh()
    assert run_row(empty, "/run/empty")["spark"] == ""
