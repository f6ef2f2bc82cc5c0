"""Stop rules: when training ends early and with which sentence, and that healthy runs are left alone."""

import json
import math
import tarfile
from pathlib import Path

import pytest

import rl.dashboard
from rl.config import RunConfig
from rl.config_file import ConfigError, build
from rl.loop.stop_rules import StopRules
from rl.stop_config import StopConfig

HEALTHY = {
    "loss/entropy": 0.05,
    "loss/clipped_pos": 0.001,
    "loss/clipped_neg": 0.004,
    "parity/mean_abs_dlogp": 1e-4,
    "rollout/all/zero_variance": 0.4,
    "rollout/all/reward": 0.6,
    "rollout_tokens": 1000.0,
    "time/total_seconds": 5.0,
}
# For each rule of the guard: settings, metrics of a step that breaks it, and its part of the sentence.
BROKEN = {
    "entropy": ({}, {"loss/entropy": 1e-4}, "the entropy was below 0.002 in each of 20 steps"),
    "clipped": (
        {},
        {"loss/clipped_pos": 0.2, "loss/clipped_neg": 0.2},
        "the share of clipped tokens was above 0.3 in each of 10 steps, 0.4 at step 10",
    ),
    "parity": (
        {},
        {"parity/mean_abs_dlogp": 0.5},
        "the difference of engine and learner in log-prob was above 0.2 in each of 10 steps",
    ),
    "zero_variance": (
        {},
        {"rollout/all/zero_variance": 1.0},
        "the share of groups without variance was above 0.98 in each of 20 steps",
    ),
    "reward": (
        {"reward": {"below": 0.1, "steps": 3}},
        {"rollout/all/reward": 0.02},
        "the mean reward was below 0.1 in each of 3 steps, 0.02 at step 3 (stop.reward)",
    ),
}


def rules(**settings) -> tuple[StopRules, list[str]]:
    """Rules of a run of 100 steps, and the sentences that they say."""
    said: list[str] = []
    made = StopRules(StopConfig.model_validate(settings), 100, lambda _, text: said.append(text))
    return made, said


def until_end(made: StopRules, metrics: dict[str, float], most: int = 60) -> int:
    """Steps with these metrics until training ends; 0 where it does not."""
    return next((s for s in range(1, most + 1) if made.step(s, HEALTHY | metrics)), 0)


@pytest.mark.parametrize("name", BROKEN)
def test_a_rule_of_the_guard_ends_training_once_all_of_its_steps_break_it(name):
    settings, metrics, sentence = BROKEN[name]
    made, said = rules(on_collapse="end", **settings)
    rule = getattr(made.settings, name)
    assert until_end(made, metrics) == rule.steps
    assert made.collapsed and said == [made.sentence]
    assert made.sentence.startswith(
        f"training ends after step {rule.steps} of 100: it has collapsed: "
    )
    assert sentence in made.sentence and f"(stop.{name})" in made.sentence


@pytest.mark.parametrize("name", BROKEN)
def test_one_good_step_is_enough_and_a_step_without_a_number_says_nothing(name):
    settings, metrics, _ = BROKEN[name]
    made, _ = rules(on_collapse="end", **settings)
    steps = getattr(made.settings, name).steps
    nothing = dict.fromkeys(metrics, math.nan)
    for step in range(1, steps):
        assert not made.step(step, HEALTHY | metrics)
    assert not made.step(steps, HEALTHY | nothing)
    assert not made.step(steps + 1, HEALTHY)
    for step in range(steps + 2, 2 * steps + 1):
        assert not made.step(step, HEALTHY | metrics)
    assert not made.sentence


def test_a_guard_that_warns_says_so_once_and_again_after_it_has_recovered():
    made, said = rules(entropy={"below": 0.01, "steps": 2})
    low = HEALTHY | {"loss/entropy": 0.001}
    for step, metrics in enumerate([low, low, low, HEALTHY, low, low], start=1):
        assert not made.step(step, metrics)
    assert [text.split(":")[1] for text in said] == [
        " training may be collapsing at step 2",
        " training may be collapsing at step 6",
    ]
    assert not made.collapsed


def test_no_step_comes_where_groups_are_played_in_vain_and_that_is_a_collapse():
    made, said = rules(on_collapse="end", zero_variance={"steps": 3})
    assert not made.starved(7, groups=10, judged=29, unused=29), "three batches would be 30"
    assert not made.starved(7, groups=10, judged=40, unused=39), "not above 0.98"
    assert not made.collapsed and said == []
    assert made.starved(7, groups=10, judged=100, unused=99) and made.collapsed
    assert said == [
        "training ends after step 7 of 100: it has collapsed: 99 of the 100 groups since then gave nothing "
        "to learn from, so no batch fills (stop.zero_variance)"
    ]
    assert made.step(8, HEALTHY) and len(said) == 1, "the step in progress ends, too"


def test_a_guard_that_is_off_says_nothing():
    made, said = rules(on_collapse="off")
    assert until_end(made, {"loss/entropy": 0.0}) == 0 and said == []


def test_patience_counts_evaluations_that_are_not_better_and_ties_are_not():
    made, said = rules(patience=2)
    for step, rate in ((0, 0.5), (5, 0.62), (10, 0.62)):
        made.evaluated(step, {"eval/mean_pass_rate": rate, "eval/lag": 1.0})
        assert not made.step(step + 1, HEALTHY)
    made.evaluated(12, {"eval/orders/pass_rate": 0.9})
    assert not made.step(13, HEALTHY)
    few = {"eval/mean_pass_rate": 1.0, "eval/faults": 0.75}
    made.evaluated(14, few)
    made.evaluated(15, {"eval/mean_pass_rate": 0.61, "eval/faults": 0.5})
    assert made.step(16, HEALTHY) and not made.collapsed
    assert said == [
        "training ends after step 16 of 100: eval/mean_pass_rate was not above the 0.62 of step 5 in 2 "
        "evaluations (stop.patience = 2)"
    ]


@pytest.mark.parametrize(
    ("settings", "steps", "sentence"),
    [
        ({"max_steps": 7}, 7, "7 steps (stop.max_steps = 7)"),
        ({"max_seconds": 12}, 3, "15 seconds of training (stop.max_seconds = 12)"),
        ({"max_tokens": 4000}, 4, "4,000 tokens played (stop.max_tokens = 4000)"),
    ],
)
def test_a_budget_ends_training_at_the_first_step_that_uses_it_up(settings, steps, sentence):
    made, said = rules(**settings)
    assert until_end(made, {}) == steps and not made.collapsed
    assert said == [f"training ends after step {steps} of 100: the budget is used up: {sentence}"]


def test_a_run_that_goes_on_counts_its_earlier_parts():
    lines = [HEALTHY | {"step": step, "loss/entropy": 1e-4} for step in range(1, 15)]
    lines.insert(5, {"step": 5, "eval/mean_pass_rate": 0.7})
    lines.append({"step": 14, "eval/mean_pass_rate": 0.6})
    settings = {"max_tokens": 20_000, "patience": 3, "on_collapse": "end"}
    made, _ = rules(**settings)
    made.restore(lines)
    assert not made.sentence
    ends = next(s for s in range(15, 40) if made.step(s, HEALTHY | {"loss/entropy": 1e-4}))
    assert ends == 20 and made.collapsed, "the twentieth step of low entropy, and of 20,000 tokens"
    patient, _ = rules(**settings | {"on_collapse": "off", "max_tokens": 0})
    patient.restore(lines)
    for step in (16, 18):
        patient.evaluated(step, {"eval/mean_pass_rate": 0.5})
    assert patient.step(19, HEALTHY)
    assert "the 0.7 of step 5 in 3 evaluations" in patient.sentence


def test_a_recorded_healthy_run_is_left_alone():
    made, said = rules(on_collapse="end")
    archive = Path(rl.dashboard.__file__).with_name("demo.tar.xz")
    with tarfile.open(archive) as files:
        metrics = files.extractfile("quickstart/metrics.jsonl")
        assert metrics is not None
        lines = [json.loads(line) for line in metrics]
    for line in lines:
        assert not made.step(line["step"], line)
    assert said == [] and len(lines) > 40


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"patience": 3}, "set eval.every or eval.seconds"),
        (
            {"metric": "rollout/all/reward"},
            "such are eval/mean_pass_rate, eval/calculator/pass_rate",
        ),
        ({"metric": "eval/orders/pass_rate"}, "is none of this run's evaluations"),
        ({"metric": "eval/lag"}, "is none of this run's evaluations"),
        ({"entropy": {"below": 0.1, "steps": 0}}, "stop.entropy.steps"),
        ({"on_collapse": "stop"}, "stop.on_collapse"),
        ({"reward": {"steps": 3}}, "stop.reward"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, sentence):
    values = {"name": "a", "model": {"init": {}}, "env": [{"id": "calculator"}], "stop": settings}
    with pytest.raises(ConfigError) as error:
        build(values, "a.toml", (), RunConfig)
    assert sentence in str(error.value) and "\n" not in str(error.value)
