"""Alarms of learning: what raises them, at which step, and that a healthy run raises none."""

import json
import math
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import rl.dashboard
from rl.loop.learning_watch import LearningWatch
from rl.samples.learning_alarms import Alarm, learning_alarms


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


def test_the_recorded_quickstart_raises_no_alarm():
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
    assert len(lines) > 40 and learning_alarms(series) == [] and live(series) == []
