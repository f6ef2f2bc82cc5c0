"""Numbers of a run: rates per environment, faults apart from rewards."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fakes import group_report, member, scored, turn

from rl.fleet.weight_sync import Publication, SyncTimes
from rl.samples.group import member_report
from rl.samples.metrics import (
    histogram,
    outcome_totals,
    pass_rates,
    quantiles,
    rollout_metrics,
)
from rollout.trajectory import Phase
from rollout.vllm_engine import LoadTimes

FAULT = {"judged": False, "stop_reason": "env_fault", "reward": 0.0, "rewards": {}}


def test_rollout_metrics_are_per_environment_and_over_all():
    metrics = rollout_metrics(
        [
            group_report("shop", [member(reward=1.0), member(reward=0.0, num_turns=4)]),
            group_report("maths", [member(reward=0.5)]),
        ]
    )
    assert metrics["rollout/shop/reward"] == 0.5
    assert metrics["rollout/shop/turns"] == 3.0
    assert metrics["rollout/maths/reward"] == 0.5
    assert metrics["rollout/all/trajectories"] == 3.0
    assert {type(value) for value in metrics.values()} == {float}


def test_a_fault_counts_as_a_fault_and_never_as_a_reward_of_zero():
    metrics = rollout_metrics([group_report("shop", [member(reward=1.0), member(**FAULT)])])
    assert metrics["rollout/shop/reward"] == 1.0
    assert metrics["rollout/shop/faults"] == 1.0


def test_without_a_judged_trajectory_there_is_no_reward_at_all():
    metrics = rollout_metrics([group_report("shop", [member(**FAULT)])])
    assert "rollout/shop/reward" not in metrics
    assert metrics["rollout/shop/faults"] == 1.0


def test_without_groups_there_are_no_metrics():
    assert rollout_metrics([]) == {}


def test_time_is_given_per_phase_and_cut_off_trajectories_are_counted():
    first = member(phase_seconds={"generate": 1.0, "close failed: no": 9.0})
    second = member(phase_seconds={"tool": 3.0}, stop_reason="max_tokens", num_malformed=2)
    metrics = rollout_metrics([group_report("shop", [first, second])])
    assert metrics["rollout/shop/generate_seconds"] == 0.5
    assert metrics["rollout/shop/tool_seconds"] == 1.5
    assert not any("close failed" in name for name in metrics)
    assert metrics["rollout/shop/truncated"] == 0.5
    assert metrics["rollout/shop/malformed_calls"] == 2.0


def test_a_members_numbers_are_those_of_its_trajectory():
    one = scored("t3", 0.5, turns=(turn((1, 2, 3), (4,), v=6), turn((5,), (6, 7), v=7)))
    phases = (Phase("generate", 0.0, 1.0), Phase("tool", 1.0, 2.0), Phase("generate", 3.0, 4.0))
    report = member_report(
        replace(one, trajectory=replace(one.trajectory, phases=phases)), "trajectories/c.jsonl", 17
    )
    assert (report.id, report.reward, report.judged) == ("t3", 0.5, True)
    assert (report.num_turns, report.num_tokens, report.num_completion_tokens) == (2, 7, 3)
    assert report.versions == (6, 7)
    assert report.phase_seconds == {"generate": 5.0, "tool": 2.0}
    assert (report.file, report.offset) == ("trajectories/c.jsonl", 17)


def test_a_pass_is_the_full_reward_of_a_judged_trajectory():
    reports = [
        group_report("shop", [member(rewards={"solved": 1.0, "style": 0.0})]),
        group_report("shop", [member(rewards={"solved": 0.5}, reward=3.0)]),
        group_report("shop", [member(**FAULT)]),
        group_report("maths", [member(rewards={"exact": 1.0}, reward=1.0)]),
        group_report("void", [member(**FAULT)]),
    ]
    assert pass_rates(reports) == {"maths": 1.0, "shop": 0.5}


def test_a_weight_sync_is_reported_by_its_slowest_engine():
    times = SyncTimes(
        snapshot_ms=20.0,
        publication=Publication(seconds=0.5, bytes=3_000_000),
        staging_ms=(90.0, 50.0),
        loads={
            "engine-0": LoadTimes(pause_ms=10.0, swap_ms=5.0, staging_ms=0.0),
            "engine-1": LoadTimes(pause_ms=30.0, swap_ms=4.0, staging_ms=0.0),
        },
    )
    assert times.metrics() == {
        "sync/snapshot_ms": 20.0,
        "sync/publish_seconds": 0.5,
        "sync/megabytes": 3.0,
        "sync/engines": 2.0,
        "sync/staging_ms": 90.0,
        "sync/pause_ms": 30.0,
        "sync/flip_ms": 5.0,
    }


def test_quantiles_and_histograms_of_the_summary():
    assert quantiles([3.0, 1.0, 2.00049]) == {"p50": 2.0, "max": 3.0}
    assert quantiles([]) == {}
    assert histogram(Counter({2: 1, 0: 7})) == {"0": 7, "2": 1}
    assert list(histogram(Counter({10: 1, 9: 1}))) == ["9", "10"]


@pytest.mark.parametrize("envs", [["shop"], ["shop", "maths"]])
def test_totals_are_the_sums_over_environments(envs):
    counts = {env: {"dispatched": 4, "trained": 3, "failed:timeout": 1} for env in envs}
    totals = outcome_totals(counts)
    assert totals["all"] == {key: n * len(envs) for key, n in counts["shop"].items()}
    assert {env: totals[env] for env in envs} == counts


def test_a_step_of_faults_alone_has_no_lengths():
    faulty = [member(f"f{i}", **FAULT, num_completion_tokens=0) for i in range(2)]
    metrics = rollout_metrics([group_report("shop", faulty)])
    assert metrics["rollout/shop/faults"] == 2
    assert not [key for key in metrics if "tokens" in key or key.endswith(("turns", "reward"))]


def test_named_rewards_spreads_and_lengths_are_those_of_numpy():
    members = [
        member(
            f"t{i}",
            reward=reward,
            rewards={"solved": reward, **({"polite": 0.5} if i % 2 else {})},
            num_completion_tokens=tokens,
        )
        for i, (reward, tokens) in enumerate(
            zip((1.0, 0.0, 0.25, 0.25, 0.75, 1.0), (3, 50, 7, 20, 11, 90), strict=True)
        )
    ]
    faulty = member("f", **FAULT, num_completion_tokens=1)
    groups = [members[:2], members[2:4], [*members[4:], faulty], [faulty]]
    metrics = rollout_metrics([group_report("shop", group) for group in groups])
    rewards, tokens = (
        [getattr(m, n) for m in members] for n in ("reward", "num_completion_tokens")
    )
    assert metrics["reward/shop/solved"] == pytest.approx(np.mean(rewards))
    assert metrics["reward/shop/polite"] == 0.5
    assert "reward/all/solved" not in metrics
    for env in ("shop", "all"):
        assert metrics[f"rollout/{env}/reward_std"] == pytest.approx(np.std(rewards))
        within = np.mean([np.std(rewards[i : i + 2]) for i in (0, 2, 4)])
        assert metrics[f"rollout/{env}/group_reward_std"] == pytest.approx(within)
        assert metrics[f"rollout/{env}/zero_variance"] == pytest.approx(1 / 3)
        every = sorted(tokens)  # those of faults are cut off, and left out
        assert metrics[f"rollout/{env}/completion_tokens"] == pytest.approx(np.mean(tokens))
        assert metrics[f"rollout/{env}/completion_tokens_p10"] == every[0]
        assert metrics[f"rollout/{env}/completion_tokens_p50"] == every[2]
        assert metrics[f"rollout/{env}/completion_tokens_p90"] == every[5]
        assert metrics[f"rollout/{env}/completion_tokens_max"] == 90
