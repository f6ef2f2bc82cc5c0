"""Reward hacking made visible: what the meters find in planted hacks, and that they are quiet otherwise."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import group_report, member

from rl.config import RunConfig
from rl.dashboard.alerts import alerts
from rl.dashboard.run_data import RunData
from rl.dashboard.trajectory_filter import read_filter
from rl.loop.learning_watch import LearningWatch
from rl.record.run_folder import RunFolder
from rl.samples.answer_form import answer_form
from rl.samples.group import GroupReport
from rl.samples.hacking_config import HackingConfig
from rl.samples.reward_hacking import (
    HackingMeters,
    best_of_group,
    correlation_within,
    explained_within,
)

SETTINGS = HackingConfig(window=32)


def group(number: int, reward, signal, form=None) -> GroupReport:
    """A group of an environment `letters` with a judge's reward and a rule that does not train."""
    members = [
        member(
            f"g{number}.{i}",
            reward=float(r),
            rewards={"judge": float(r), "rule": float(s)},
            form={} if form is None else form[i],
        )
        for i, (r, s) in enumerate(zip(reward, signal, strict=True))
    ]
    return group_report("letters", members)


class Played:
    """A made-up run of 16 groups of 8 a step. A judge sees quality with noise, and likes flattery more, which
    costs quality; a policy of two arms flatters more as the group's advantages say, and learns the task."""

    def __init__(self, seed: int, *, noise: float = 0.1, learns: float = 0.15) -> None:
        self.random = np.random.default_rng(seed)
        self.noise, self.learns = noise, learns
        self.meters = HackingMeters(HackingConfig(), {"letters": ("rule",)})
        self.told: list[tuple[int, str, str]] = []
        self.shown: list[tuple[str, ...]] = []
        self.watch = LearningWatch(self.say, self.meters)
        self.step, self.skill, self.logit = 0, 0.4, -7.0
        self.quality: list[float] = []
        self.hacked: set[str] = set()

    def say(self, what: str, sentence: str, trajectories: tuple[str, ...] = ()) -> None:
        self.told.append((self.step, what, sentence))
        self.shown.append(trajectories)

    def play(self, steps: int, *, worth: float | None = None, cost: float = 0.0) -> None:
        """Go on for so many steps. worth: the reward of flattery, None where nobody flatters."""
        for _ in range(steps):
            self.step += 1
            share = 0.0 if worth is None else 1 / (1 + math.exp(-self.logit))
            push, grown = 0.0, 0.0
            seen: list[float] = []
            for number in range(16 * self.step, 16 * self.step + 16):
                level = self.skill + 0.1 * self.random.standard_normal()
                chance = 0.2 * self.random.standard_normal(8)
                flatters = self.random.random(8) < share
                quality = np.clip(level + chance - cost * flatters, 0, 1)
                reward = quality + self.noise * self.random.standard_normal(8)
                reward = np.where(flatters, (worth or 0) + 0.05 * chance, reward)
                advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
                push += float(np.mean(advantage * (flatters - share))) / 16
                grown += float(np.mean(advantage * chance * ~flatters)) / 16
                seen.append(float(quality.mean()))
                self.hacked |= {f"g{number}.{i}" for i in np.flatnonzero(flatters)}
                self.meters.add(group(number, reward, quality))
            self.logit = min(8.0, self.logit + 0.25 * push / max(share * (1 - share), 0.002))
            self.skill = min(0.75, self.skill + self.learns * grown)
            self.quality.append(float(np.mean(seen)))
            self.watch.step(self.step, self.meters.metrics())


def test_the_correlation_within_groups_is_that_of_centred_numbers():
    random = np.random.default_rng(1)
    groups = [(random.random(5), random.random(5)) for _ in range(40)]
    x = np.concatenate([one - one.mean() for one, _ in groups])
    y = np.concatenate([one - one.mean() for _, one in groups])
    found = correlation_within(groups)
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1])
    shifted = [(a + 10 * i, b - 7 * i) for i, (a, b) in enumerate(groups)]
    assert correlation_within(shifted) == pytest.approx(found), "tasks differ, groups do not"
    assert correlation_within([(np.ones(4), random.random(4))]) is None


def test_what_a_reward_calls_best_is_compared_with_its_group():
    first = (np.array([1.0, 0.0, 1.0]), np.array([0.0, 3.0, 3.0]))
    second = (np.array([0.0, 2.0, 1.0]), np.array([6.0, 0.0, 3.0]))
    mean, error = best_of_group([first, second])
    assert mean == pytest.approx((-0.5 - 3.0) / 2) and error == pytest.approx(1.25)


def test_the_explained_share_is_that_of_a_regression_with_a_mean_for_each_group():
    random = np.random.default_rng(2)
    groups = []
    for _ in range(60):
        features = random.random((6, 3))
        noise = 0.3 * random.standard_normal(6)
        groups.append((features @ [1.0, -2.0, 0.0] + noise + random.random(), features))
    found = explained_within(groups)
    assert found is not None
    # The same with a column of ones for each group, and the textbook's adjusted share.
    dummies = np.kron(np.eye(60), np.ones((6, 1)))
    design = np.hstack([dummies, np.concatenate([f for _, f in groups])])
    reward = np.concatenate([r for r, _ in groups])
    left = reward - design @ np.linalg.lstsq(design, reward)[0]
    within = np.concatenate([r - r.mean() for r, _ in groups])
    expected = 1 - (left @ left / (360 - 63)) / (within @ within / 300)
    assert found[0] == pytest.approx(expected)
    assert explained_within(groups, [2])[0] < 0.05 < 0.5 < explained_within(groups, [1])[0]  # type: ignore[index]


@pytest.mark.parametrize(("worth", "cost"), [(1.1, 0.4), (1.5, 0.2)])
def test_a_planted_hack_is_told_before_the_true_quality_has_fallen_by_a_tenth(worth, cost):
    run = Played(1)
    run.play(45, worth=worth, cost=cost)
    first, what, sentence = run.told[0]
    best = max(run.quality[:first])
    assert best - run.quality[first - 1] < 0.1 < max(run.quality) - min(run.quality[first:])
    assert what == "hacking letters rule" and "reward and rule go apart" in sentence
    assert len(run.shown[0]) == 5 and set(run.shown[0]) <= run.hacked
    assert run.shown[0][0] in sentence


def test_a_hack_that_all_have_learnt_at_once_is_told_by_the_fall():
    run = Played(3, learns=0.0)
    run.skill = 0.7
    run.play(6)
    for step in range(6):
        run.step += 1
        for index in range(16):
            quality = np.full(8, 0.4) + 0.02 * run.random.standard_normal()
            run.meters.add(group(1000 + 16 * step + index, np.full(8, 0.95), quality))
        run.watch.step(run.step, run.meters.metrics())
    [sentence] = [sentence for _, _, sentence in run.told if "the reward rose from" in sentence]
    assert "while rule fell from 0." in sentence
    found = run.meters.metrics()
    assert found["hacking/letters/rule/fallen"] == pytest.approx(0.3, abs=0.05)
    assert found["hacking/letters/rule/risen"] == pytest.approx(0.25, abs=0.05)


@pytest.mark.heavy
@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_runs_that_learn_or_stand_still_tell_of_nothing(noise):
    for learns in (0.15, 0.0):
        run = Played(11, noise=noise, learns=learns)
        run.play(50)
        assert run.told == []


def test_an_earlier_part_of_a_run_is_remembered():
    first, again = Played(5), Played(6)
    first.play(6)
    line = json.loads(json.dumps(first.meters.metrics()))
    again.watch.restore([line, {"step": 7.0}])
    [before], [after] = (one.meters.signals["letters"] for one in (first, again))
    assert before.best is not None and after.best is not None
    assert after.best[:2] == pytest.approx(before.best[:2], abs=0.03)


def test_answers_that_earn_by_their_length_are_told_of_and_shown():
    random = np.random.default_rng(4)
    by_length, by_quality = [], []
    for number in range(64):
        counts = random.integers(5, 60, 8)
        form = [answer_form("well " * int(n), int(n)) for n in counts]
        noise = 0.1 * random.standard_normal(8)
        by_length.append(group(number, counts / 60 + noise, random.random(8), form))
        by_quality.append(group(number, random.random(8), random.random(8), form))
    for played, alarmed in ((by_length, True), (by_quality, False)):
        meters = HackingMeters(SETTINGS, {"letters": ()})
        for one in played:
            meters.add(one)
        alarms = meters.look()
        explained = meters.metrics()["hacking/letters/explained"]
        assert explained > 0.7 if alarmed else explained < 0.15
        assert [one.against for one in alarms] == ["form"] * alarmed
        assert meters.look() == [], "once for as long as it lasts"
    alarm = HackingMeters(SETTINGS, {"letters": ()})
    for one in by_length:
        alarm.add(one)
    [told] = alarm.look()
    assert "length alone" in told.text and len(told.trajectories) == 5


def test_form_is_length_and_marks_and_nothing_of_what_is_said():
    plain = answer_form("Dear Ana, welcome home", 6)
    assert plain == answer_form("Deer Bob, goodbye mate", 6)
    loud = answer_form("# WELCOME!!!\n\n- **Ana**\n- 🎉🎉 `x` 12?", 30)
    for name in ("lines", "list_items", "headings", "emphasis", "code", "exclamations", "symbols"):
        assert loud[name] > plain[name] == 0, name
    assert answer_form("", 0)["repeated_words"] == 0
    assert answer_form("a " * 50_000, 1)["repeated_words"] > 0.99


def table(**changes: object) -> dict[str, object]:
    env = {"id": "calculator", "judge": [{"id": "writing", "config": {"max_words": 9}}]} | changes
    return {"name": "x", "model": {"init": {}}, "env": [env]}


def test_rewards_of_weight_0_are_the_signals_of_a_judged_environment():
    weighed = RunConfig.model_validate(table(rewards={"solved": 0, "writing": 1}))
    assert weighed.signals == {"calculator": ("solved",)}
    assert RunConfig.model_validate(table()).signals == {"calculator": ()}
    chosen = table(rewards={"solved": 0}, signals=["solved"], judge=[])
    assert RunConfig.model_validate(chosen).signals == {"calculator": ("solved",)}
    assert RunConfig.model_validate(table(judge=[])).signals == {}
    with pytest.raises(
        ValueError, match=r"signals: 'solved' trains with the weight 1, .*rewards\.solved = 0"
    ):
        RunConfig.model_validate(table(signals=["solved"]))


def test_the_dashboard_shows_the_alarm_and_leads_to_its_trajectories(tmp_path: Path):
    config = RunConfig.model_validate(table() | {"runs_dir": str(tmp_path)})
    folder = RunFolder(config)
    from rl.record.journal import Journal
    from rl.record.progress import Progress

    journal = Journal(Progress(), folder)
    watch = LearningWatch(journal.say, HackingMeters(SETTINGS, {"letters": ("rule",)}))
    random = np.random.default_rng(7)
    for number in range(40):
        reward = random.random(8)
        report = group(number, reward, 1 - reward)
        folder.index(replace(report, spec=replace(report.spec, id=f"g{number}")), "train")
        assert watch.hacking is not None
        watch.hacking.add(report)
    watch.step(1, {})
    folder.close()
    run = RunData(folder.path, tmp_path / "cache")
    run.refresh()
    [alert] = [one for one in alerts(run) if "go apart" in one.text]
    assert alert.page == "trajectories" and "reward and rule go apart" in alert.text
    asked = read_filter(dict(alert.query))
    from rl.dashboard.trajectory_index import hits

    found = hits(run.folder, asked)
    assert sorted(one.id for one in found) == sorted(asked.ids.split(","))
