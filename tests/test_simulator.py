"""The simulator: its engine against arithmetic, its books in every mode, its calibration, its commands."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rl.cli import app
from rl.config_file import ConfigError
from rl.simulator.calibrate import fit
from rl.simulator.config import CostSpec, SimConfig
from rl.simulator.engine import SimEngine, Work
from rl.simulator.report import figures, simulate
from rl.simulator.simulation import Simulation

COST = CostSpec(
    decode_fixed_ms=10,
    decode_per_sequence_ms=1,
    prefill_tokens_per_second=1000,
    kv_tokens=10_000,
    train_fixed_seconds=20,
    train_device_seconds_per_token=0.01,
    weights_seconds=1,
    kv_bytes_per_token=1000,
    move_bytes_per_second=1e6,
)
MODES = {
    "sync": {"layout": "colocated"},
    "one_step": {
        "layout": "disaggregated",
        "rollout_share": 0.5,
        "max_staleness": 1,
        "over_dispatch": 2,
    },
    "in_flight": {"in_place": True, "max_staleness": 4, "over_dispatch": 1.5},
    "dora": {
        "layout": "elastic",
        "rollout_share": 0.5,
        "live": 3,
        "max_staleness": 3,
        "over_dispatch": 1.5,
        "active_per_engine": 12,
        "expected_tokens": 100,
        "period_seconds": 20,
    },
}
SETTINGS = {
    "name": "small",
    "steps": 6,
    "warmup_steps": 2,
    "cluster": {"devices": 8, "devices_per_engine": 2},
    "cost": COST.model_dump(),
    "workload": {
        "groups": 8,
        "group_size": 4,
        "prompt_tokens": 20,
        "turns": 2,
        "tool_tokens": 10,
        "length": {"median": 60, "sigma": 1.0, "max": 800},
        "tool": {"median_seconds": 0.5, "p99_seconds": 8},
        "filtered": 0.2,
    },
    "modes": MODES,
}


def config(**changes) -> SimConfig:
    return SimConfig.model_validate({**SETTINGS, **changes})


def engine(limit: int = 8) -> SimEngine:
    made = SimEngine("e", COST)
    made.limit = limit
    return made


def play(engine: SimEngine) -> list[tuple[int, float]]:
    """(id, end) of everything there is, in order."""
    ends = []
    while (end := engine.next_end()) is not None:
        engine.advance(end)
        while (id := engine.take_ended()) is not None:
            ends.append((id, round(end, 6)))
    return ends


def test_sequences_write_at_one_pace_that_depends_on_how_many_there_are():
    one = engine()
    for id, tokens in enumerate((100, 200, 400)):
        one.add(Work(id, tokens, context=50, cached=50))
    # 100 tokens at 13 ms, 100 more at 12 ms, 200 more at 11 ms.
    assert play(one) == [(0, 1.3), (1, 2.5), (2, 4.7)]
    assert (one.running, round(one.cached, 6), one.busy_seconds) == (0, 0.0, pytest.approx(4.7))


def test_a_prefill_makes_the_engine_stand_still():
    one = engine()
    one.add(Work(0, 100, context=500, cached=100))
    assert play(one) == [(0, 0.4 + 1.1)]


def test_what_finds_no_place_waits_in_line_and_full_caches_are_a_limit_too():
    one = engine(limit=1)
    one.add(Work(0, 100, 0, 0))
    one.add(Work(1, 100, 0, 0))
    assert play(one) == [(0, 1.1), (1, 2.2)]
    full = engine()
    full.add(Work(0, 100, 9000, 9000))
    full.add(Work(1, 100, 2000, 2000))
    assert full.running == 1
    assert [id for id, _ in play(full)] == [0, 1]


def test_the_line_is_in_the_order_in_which_sequences_began():
    one = engine(limit=1)
    for id in (0, 5, 3):
        one.add(Work(id, 10, 0, 0))
    assert [id for id, _ in play(one)] == [0, 3, 5]


def test_where_the_cache_overflows_the_last_to_begin_waits_and_computes_its_prefix_again():
    one = engine()
    one.add(Work(0, 1000, 9000, 9000))
    one.add(Work(1, 800, 100, 100))
    one.advance(5.4)
    assert (one.running, one.cache_usage) == (2, pytest.approx(0.9 + 0.01 + 2 * 0.045))
    one.advance(6.0)
    assert one.take_ended() is None and one.running == 1
    (first, end), (second, later) = play(one)
    # 500 tokens together at 12 ms, 500 alone at 11 ms; then a prefill of 600 tokens and 300 more.
    assert (first, end) == (0, pytest.approx(6 + 5.5))
    assert (second, later) == (1, pytest.approx(6 + 5.5 + 0.6 + 3.3))


def test_a_sequence_taken_away_half_way_takes_what_it_has_written_with_it():
    one = engine()
    one.add(Work(0, 100, 30, 30))
    one.advance(0.55)
    work = one.remove(0)
    assert work is not None and (work.left, work.context, work.cached) == pytest.approx(
        (50, 80, 80)
    )
    assert one.next_end() is None and one.remove(0) is None


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 50), filtered=st.sampled_from([0.0, 0.3]))
@settings(max_examples=8, deadline=None)
def test_the_books_balance_in_every_mode_and_staleness_keeps_its_bound(mode, seed, filtered):
    workload = {**SETTINGS["workload"], "filtered": filtered}
    played = config(seed=seed, workload=workload)
    simulation = Simulation(played, played.modes[mode])
    simulation.run()
    assert simulation.ledger_remainder() == 0
    gaps = [gap for step in simulation.steps for gap in step.staleness]
    assert max(gaps) <= played.modes[mode].max_staleness
    assert simulation.tally.stale == 0 or mode == "in_flight"
    loads = {
        n: sum(t.engine == n for t in simulation.trajectories.values()) for n in simulation.engines
    }
    assert {n: simulation.loads[n] for n in loads} == loads
    assert sum(simulation.active.values()) == len(simulation.trajectories)


def test_a_mode_with_discard_counts_what_it_gives_up():
    quick = COST.model_dump() | {"train_fixed_seconds": 0, "train_device_seconds_per_token": 1e-4}
    mode = MODES["dora"] | {"eviction": "discard", "live": 1}
    played = config(cost=quick, modes={"dora": mode})
    simulation = Simulation(played, played.modes["dora"])
    simulation.run()
    assert simulation.tally.discarded > 0
    assert simulation.ledger_remainder() == 0


def test_the_same_seed_gives_the_same_figures():
    assert simulate(config()) == simulate(config())
    assert simulate(config()) != simulate(config(seed=1))


def test_a_synchronous_step_is_its_longest_trajectory_and_then_training():
    """One engine, one group, no spread: every figure by hand."""
    settings = {
        "cluster": {"devices": 1},
        "cost": COST.model_dump() | {"weights_seconds": 0},
        "workload": {
            "groups": 1,
            "group_size": 2,
            "prompt_tokens": 100,
            "length": {"median": 50, "sigma": 0, "max": 99},
        },
        "modes": {"sync": {}},
    }
    played = config(**settings)
    simulation = Simulation(played, played.modes["sync"])
    simulation.run()
    seen = figures(simulation)
    rollout, learner = 2 * 0.1 + 50 * 0.012, 20 + 300 * 0.01
    assert seen["step_min"] == pytest.approx((rollout + learner) / 60, abs=1e-4)
    assert seen["tokens_per_s"] == pytest.approx(300 / (rollout + learner), abs=0.1)
    assert seen["rollout_only_share"] == pytest.approx(rollout / (rollout + learner), abs=1e-4)
    assert seen["staleness"] == {"0": 6}


def test_calibration_finds_the_costs_that_made_a_step():
    sync = {"modes": {"sync": MODES["sync"]}}
    seen = simulate(config(**sync))["modes"]["sync"]
    step, learner = seen["step_min"], seen["learner_min"]
    unknown = COST.model_dump() | {"decode_per_sequence_ms": 0, "train_fixed_seconds": 0}
    measured = {"step_min": step, "rollout_min": step - learner}
    found = fit(config(**sync, cost=unknown, measured=measured))
    assert found["decode_per_sequence_ms"] == pytest.approx(1, rel=0.02)
    assert found["train_fixed_seconds"] == pytest.approx(20, rel=0.02)


def test_calibration_says_what_it_lacks():
    with pytest.raises(ConfigError, match=r"needs \[measured\] and \[modes.sync\]"):
        fit(config())


def run(folder: Path, *arguments: str):
    path = folder / "sim.toml"
    if not path.exists():
        import tomli_w

        path.write_text(tomli_w.dumps(SETTINGS), encoding="utf-8")
    return CliRunner().invoke(app, ["simulate", str(path), *arguments])


def test_the_command_prints_a_table_or_one_object(tmp_path):
    shown = run(tmp_path)
    assert shown.exit_code == 0 and "one_step" in shown.stdout and "8 devices" in shown.stdout
    seen = json.loads(run(tmp_path, "--json", "--set", "cluster.devices=16").stdout)
    assert (seen["devices"], list(seen["modes"])) == (16, list(MODES))
    wanted = {"step_min", "tokens_per_s", "rollout_only_share", "bubble", "load_ratio", "staleness"}
    assert all(wanted <= set(row) for row in seen["modes"].values())


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ("modes.dora.live=0", "live (K) is 0; a run needs at least one live version"),
        ("modes.dora.over_dispatch=0.5", "over_dispatch (0.5) is below one batch"),
        ("modes.dora.rollout_share=1", "has to leave devices to the learner"),
        ("modes.dora.liv=2", "unknown key, did you mean 'live'?"),
        ("modes.doar.live=2", "modes.doar"),
        ("cluster.devices=7", "devices (7) has to be a multiple of devices_per_engine (2)"),
    ],
)
def test_a_bad_setting_is_one_sentence_and_exit_code_2(tmp_path, changed, wanted):
    result = run(tmp_path, "--set", changed)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert wanted in line
