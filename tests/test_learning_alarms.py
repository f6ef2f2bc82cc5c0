"""Alarms of learning: what raises them, at which step, and that a healthy run raises none."""

import json
import math
import random
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import sample

import rl.dashboard
from rl.loop.learning_watch import LearningWatch
from rl.samples.learning_alarms import Alarm, learning_alarms
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.learner import Learner
from trainer.moe.router import BiasedRouter

pytestmark = pytest.mark.heavy


@dataclass
class Points:
    steps: list[int]
    values: list[float]


Series = dict[str, Points]


def points(values) -> Points:
    """A metric of steps 1, 2, …"""
    values = [float(value) for value in values]
    return Points(list(range(1, len(values) + 1)), values)


def alarmed(**metrics) -> list[tuple[int, str]]:
    """Steps and keys of the alarms; in names of metrics `__` stands for a slash."""
    series = {key.replace("__", "/"): points(values) for key, values in metrics.items()}
    return [(alarm.step, alarm.key) for alarm in learning_alarms(series)]


def live(series: Series) -> list[tuple[int, str]]:
    """Steps at which a run that has these metrics tells of an alarm, and the sentences."""
    said: list[tuple[int, str]] = []
    step = 0
    watch = LearningWatch(lambda what, sentence: said.append((step, sentence)))
    lines: dict[int, dict[str, float]] = {}
    for key, one in series.items():
        for step, value in zip(one.steps, one.values, strict=True):
            lines.setdefault(step, {})[key] = value
    for step in sorted(lines):
        watch.step(step, lines[step])
    return said


def test_what_stays_where_it_went_is_one_alarm_and_a_single_step_is_none():
    steady = [0.4] * 12
    assert alarmed(loss__entropy=[*steady, *[0.05] * 30]) == [(14, "loss/entropy")]
    assert alarmed(loss__entropy=[*steady, 0.05, *steady]) == []
    assert alarmed(loss__entropy=[*steady, *[2.0] * 30]) == [(14, "loss/entropy")]
    assert alarmed(loss__entropy=np.geomspace(0.4, 0.04, 60)) == [], "what moves slowly is no alarm"


def test_one_step_of_the_gradient_is_enough_where_it_stands_apart_from_all_before():
    wild = [0.1, 0.3, 0.1, 0.2, 0.45, 0.1, 0.2, 0.1]
    assert alarmed(optim__grad_norm=[*wild, 1.0, *wild]) == []
    assert alarmed(optim__grad_norm=[*wild, 1.3, *wild]) == [(9, "optim/grad_norm")]


def test_one_update_at_fifty_times_the_rate_is_an_alarm_though_no_step_comes_after():
    """The KL of a small run on vLLM whose learning rate was multiplied at step 12; it had collapsed then."""
    healthy = [0, 0.003, 0.0033, 0.0016, 0.0004, 0.0063, 0.0003, 0.002, 0.0021, 0.0047, 0.0011, 0]
    assert alarmed(learn__all__kl_behaviour=healthy) == []
    assert alarmed(learn__all__kl_behaviour=[*healthy, 2.4888]) == [(13, "learn/all/kl_behaviour")]


def test_a_gradient_that_was_zero_until_now_has_not_jumped():
    assert alarmed(optim__grad_norm=[0.0] * 8 + [0.4, 0.5, 0.4]) == []


def test_a_metric_needs_some_steps_before_and_a_difference_that_matters():
    assert alarmed(loss__entropy=[0.4] * 2 + [0.01] * 8) == []
    assert alarmed(loss__entropy=[0.006] * 9 + [0.0011] * 9) == []
    assert alarmed(router__idle_experts=[0, 0, 1, 0, 0, 0, 0, 1, 0, 0]) == []
    assert alarmed(router__idle_experts=[0] * 8 + [1] * 8) == [(10, "router/idle_experts")]


def test_length_is_of_each_environment_and_of_no_mixture_of_them():
    long = [25.0] * 10 + [150.0] * 5
    found = alarmed(rollout__a__completion_tokens=long, rollout__all__completion_tokens=long)
    assert found == [(12, "rollout/a/completion_tokens")]


def test_an_alarm_says_what_went_where():
    series: Series = {"rollout/a/completion_tokens": points([25] * 10 + [150] * 5)}
    [alarm] = learning_alarms(series)
    assert alarm == Alarm(
        12,
        "rollout/a/completion_tokens",
        "a: tokens that it writes per episode rose from 25 to 150 by step 12",
    )


def test_a_run_tells_of_each_alarm_once_at_its_step_and_of_earlier_parts_never_again():
    solved = [0.5] * 40
    total = [0.5] * 15 + list(np.linspace(0.5, 0.9, 10)) + [0.9] * 15
    series: Series = {
        "loss/entropy": points([0.4] * 12 + [0.05] * 28),
        "reward/a/solved": points(solved),
        "rollout/a/reward": points(total),
    }
    told = live(series)
    assert [step for step, _ in told] == [14, 24]
    assert told[0][1] == "warning: entropy fell from 0.4 to 0.05 by step 14"
    assert "a: since step" in told[1][1]
    said: list[str] = []
    watch = LearningWatch(lambda what, sentence: said.append(sentence))
    lines = [
        {"step": step + 1, **{key: one.values[step] for key, one in series.items()}}
        for step in range(40)
    ]
    watch.restore(lines[:30])
    for line in lines[30:]:
        watch.step(int(line["step"]), line | {"loss/entropy": math.nan})
    assert said == []


def recorded() -> Series:
    """The metrics of the demo's run, a real quickstart."""
    with tarfile.open(Path(rl.dashboard.__file__).with_name("demo.tar.xz")) as files:
        metrics = files.extractfile("quickstart/metrics.jsonl")
        assert metrics is not None
        lines = [json.loads(line) for line in metrics]
    series: Series = {}
    for line in lines:
        for key, value in line.items():
            one = series.setdefault(key, Points([], []))
            one.steps.append(line["step"])
            one.values.append(value)
    return series


def test_the_recorded_quickstart_raises_no_alarm():
    series = recorded()
    assert len(series["loss/entropy"].steps) == 44
    assert learning_alarms(series) == [] and live(series) == []


def test_in_the_recorded_quickstart_six_times_the_length_is_an_alarm():
    series = recorded()
    tokens = series["rollout/units/completion_tokens"]
    longer = np.interp(tokens.steps, [25, 30], [1, 6])
    tokens.values[:] = (np.array(tokens.values) * longer).tolist()
    [alarm] = learning_alarms(series)
    assert alarm.key == "rollout/units/completion_tokens" and 26 <= alarm.step <= 30
    assert [step for step, _ in live(series)] == [alarm.step]


def test_in_the_recorded_quickstart_a_judge_that_is_hacked_is_an_alarm_that_names_it():
    """Memory's episodes are solved as recorded; the judge pays for something else from step 20 on."""
    series = recorded()
    solved = series["rollout/memory/reward"]
    brief = Points(solved.steps, np.interp(solved.steps, [20, 30], [0.2, 0.95]).tolist())
    total = 0.4 * np.array(solved.values) + 0.6 * np.array(brief.values)
    series["reward/memory/solved"], series["reward/memory/brief"] = solved, brief
    series["rollout/memory/reward"] = Points(solved.steps, total.tolist())
    [alarm] = learning_alarms(series)
    assert alarm.text.startswith("memory: since step ") and "brief rose most" in alarm.text
    assert alarm.step <= 20
    [(told, _)] = live(series)
    assert 22 <= told <= 30
    series["reward/memory/solved"] = Points(solved.steps, total.tolist())
    assert learning_alarms(series) == [], "it rises with its task"


def learns(checkpoint: Path, fault: str) -> Series:
    """The metrics of a real learner over 16 batches of random tokens, with a fault from step 10 on."""
    learner = Learner(
        checkpoint,
        LearnerConfig(
            micro_batch_tokens=512,
            loss=LossConfig(max_completion_tokens=20),
            optim=OptimConfig(lr=2e-4),
            threads=1,
        ),
        temperature=1.0,
        keep_versions=0,
    )
    series: Series = {}
    for step in range(1, 17):
        batch = [
            sample(f"s{i}", 24, random.Random(100 * step + i), version=step - 1) for i in range(12)
        ]
        if step >= 10:
            batch = [PLANTED[fault](s) for s in batch] if fault in PLANTED else batch
            if fault == "entropy":
                optim = learner.optimizer
                optim.config = optim.config.model_copy(update={"lr": 1e-2})
            if step == 10:
                router = learner.scorer.routers[0]
                assert isinstance(router, BiasedRouter)
                router.e_score_correction_bias[0] += BIAS.get(fault, 0)
        for key, value in learner.step(batch).metrics.items():
            one = series.setdefault(key, Points([], []))
            one.steps.append(step)
            one.values.append(value)
    return series


# Rewards that nothing brings to scale any more; and rewards without a baseline, always of the same tokens.
PLANTED = {
    "gradient": lambda s: replace(s, advantages=tuple(20 * a for a in s.advantages)),
    "entropy": lambda s: replace(
        s,
        token_ids=(30,) * len(s.token_ids),
        advantages=tuple(float(wrote) for wrote in s.loss_mask),
    ),
}


# Of one expert's choice: all tokens, or none.
BIAS = {"full expert": 10, "empty expert": -10}


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ("", ""),
        ("gradient", "optim/grad_norm"),
        ("entropy", "loss/entropy"),
        ("full expert", "router/load_violation_max"),
        ("empty expert", "router/idle_experts"),
    ],
)
def test_a_real_learner_with_a_planted_fault_raises_its_alarm_and_none_before(
    checkpoint, fault, key
):
    series = learns(checkpoint, fault)
    alarms = learning_alarms(series)
    assert all(alarm.step >= 10 for alarm in alarms)
    steps = [alarm.step for alarm in alarms if alarm.key == key]
    if not fault:
        assert alarms == []
    elif fault == "gradient":
        assert steps == [10]
    else:
        assert len(steps) == 1 and 11 <= steps[0] <= 13
    assert [step for step, _ in live(series)] == [alarm.step for alarm in alarms]
