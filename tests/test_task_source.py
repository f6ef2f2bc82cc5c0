"""TaskSource: what becomes of groups decides who begins the next one, with which task."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from fakes import Counting, group_report, member
from test_streams import Graded, GradedConfig

from envs.env import EnvConfig
from rl.config import RunConfig
from rl.samples.group import GroupSpec
from rl.tasks.task_source import TaskSource


class Play:
    """Plays groups of four in an invented second each."""

    def __init__(self, *tables: dict[str, Any]) -> None:
        envs = [
            {"id": "counting", "name": f"e{n}", "breaker": {"faults": 4}, **table}
            for n, table in enumerate(tables)
        ]
        config = RunConfig.model_validate(
            {"name": "demo", "model": {"init": {}}, "env": envs, "batch": {"group_size": 4}}
        )
        instances = [
            Graded(GradedConfig(difficulty=1)) if "curriculum" in t else Counting(EnvConfig())
            for t in tables
        ]
        self.said: list[str] = []
        self.task_source = TaskSource(
            config.env, instances, 4, 0, lambda _, text: self.said.append(text)
        )
        self.number = 0
        self.now = 0.0

    def begin(self, room: int = 1) -> GroupSpec | None:
        self.number += 1
        begun = self.task_source.begin(f"g{self.number}", self.now, room)
        if begun is None:
            return None
        return GroupSpec(f"g{self.number}", *begun, ids=("a", "b", "c", "d"), train=True)

    def end(self, spec: GroupSpec, *stops: str, passed: int = 2, retries: int = 0) -> None:
        """stops: how the members ended, `completed` where nothing is said."""
        self.now += 1
        stops += ("completed",) * (4 - len(stops))
        members = [
            member(
                f"m{n}",
                stop_reason=stop,
                judged=stop == "completed",
                rewards={"solved": float(n < passed)},
            )
            for n, stop in enumerate(stops)
        ]
        report = group_report(spec.env, members, retries=retries)
        self.task_source.end(replace(report, spec=spec), self.now)

    def play(self, count: int, broken: str = "", stop: str = "env_fault", **how: Any) -> Counter:
        """Begin and end so many groups, one after the other."""
        played: Counter[str] = Counter()
        for _ in range(count):
            spec = self.begin()
            assert spec is not None
            played[spec.env] += 1
            self.end(spec, *((stop,) * 4 if spec.env == broken else ()), **how)
        return played


def test_one_of_five_that_fails_rests_and_comes_back_by_itself():
    play = Play(*[{}] * 5)
    assert set(play.play(10).values()) == {2}
    failing = play.play(40, broken="e3")
    assert failing["e3"] <= 2 + 4, "until it tripped, and after 10 s and 20 s more a probe each"
    assert min(failing[f"e{n}"] for n in (0, 1, 2, 4)) >= 8
    assert play.task_source.open_breakers == ["e3"]
    assert play.task_source.metrics()["env/e3/breaker"] == 1.0
    play.now += 300
    assert play.play(1000)["e3"] >= 190
    assert play.task_source.open_breakers == []
    assert play.said[0].startswith("environment 'e3': ")
    assert "gets no new groups for 10 s, the others have its share" in play.said[0]
    assert play.said[-1].startswith("environment 'e3' works again (0 of 4")


def test_a_host_that_dies_counts_and_an_engine_that_dies_does_not():
    play = Play({}, {})
    play.play(12, broken="e1", stop="engine_fault")
    assert play.task_source.open_breakers == []
    play.play(12, broken="e1", stop="host_fault")
    assert play.task_source.open_breakers == ["e1"]


def test_a_probe_that_says_nothing_is_made_anew():
    play = Play({})
    play.play(1, broken="e0")
    assert play.begin() is None
    assert play.task_source.next_probe(play.now) == pytest.approx(10, abs=1)
    play.now += 10
    assert play.task_source.next_probe(play.now) is None, "it waits for room, and for no time"
    play.play(1, broken="e0", stop="engine_fault")
    probe = play.begin()
    assert probe is not None
    play.task_source.lost(probe.id)
    probe = play.begin()
    assert probe is not None and play.begin() is None
    play.end(probe)
    assert play.task_source.open_breakers == []
    assert play.task_source.next_probe(play.now) is None


def test_hopeless_is_where_all_fail_their_probe_too_and_none_ever_worked():
    play = Play({}, {})
    play.play(1, broken="e0")
    play.play(1, broken="e1")
    assert play.task_source.open_breakers == ["e0", "e1"]
    assert not play.task_source.all_failed, (
        "one that ends its host takes the other's episodes along"
    )
    play.now += 20
    for _ in range(2):
        assert not play.task_source.all_failed
        probe = play.begin()
        assert probe is not None
        play.end(probe, *("env_fault",) * 4)
    assert play.task_source.all_failed
    play.now += 100
    play.play(2)
    play.now += 1000
    play.play(8, broken="e0")
    assert not play.task_source.all_failed


def test_what_was_given_up_is_played_before_new_tasks_and_when_its_environment_may():
    play = Play({"weight": 2}, {})
    specs = [play.begin() for _ in range(3)]
    for spec in specs:
        assert spec is not None
        play.task_source.put_back(spec.id)
    assert not play.task_source.playing and not play.task_source.in_flight.total()

    def tasks(found: list[GroupSpec | None]) -> set[tuple[str, str]]:
        return {(spec.env, spec.task.id) for spec in found if spec}

    assert tasks([play.begin() for _ in range(3)]) == tasks(specs)


def test_concurrency_bounds_the_groups_of_an_environment():
    play = Play({"concurrency": 8}, {})
    begun = [play.begin(room=30 - n) for n in range(30)]
    assert Counter(spec.env for spec in begun if spec) == {"e0": 2, "e1": 28}
    first = next(spec for spec in begun if spec and spec.env == "e0")
    play.end(first)
    assert "e0" in {spec.env for spec in (play.begin(room=2), play.begin()) if spec}


def test_the_asked_for_begun_and_trained_mixture_are_metrics():
    play = Play({"weight": 1}, {"weight": 3, "over_sample": 3})
    play.play(20)
    play.task_source.train(["e0", "e1", "e1", "e1"])
    metrics = play.task_source.metrics()
    assert [metrics[f"mix/{e}/asked"] for e in ("e0", "e1")] == [0.25, 0.75]
    assert [metrics[f"mix/{e}/begun"] for e in ("e0", "e1")] == [0.1, 0.9]
    assert [metrics[f"mix/{e}/trained"] for e in ("e0", "e1")] == [0.25, 0.75]


def test_retries_are_counted():
    play = Play({})
    play.play(2, retries=3)
    assert play.task_source.metrics()["env/e0/retries"] == 6.0


def test_difficulty_rises_with_the_pass_rate_and_is_said():
    play = Play({"curriculum": {"groups": 4, "extra_groups": 1}})
    easy = play.begin()
    assert easy is not None and easy.task.data["difficulty"] == 1
    play.end(easy)
    play.play(8, passed=4)
    assert play.said[0] == "environment 'e0': difficulty 1 -> 2 (pass rate 0.88)"
    level = play.task_source.metrics()["env/e0/difficulty"]
    harder = play.begin()
    assert harder is not None and harder.task.data["difficulty"] == level > 1


def test_a_hard_task_is_played_by_more_groups():
    play = Play({"curriculum": {"extra_groups": 2}})
    spec = play.begin()
    assert spec is not None
    play.end(spec, passed=1)
    found = [play.begin() for _ in range(3)]
    assert [f.task == spec.task for f in found if f] == [True, True, False]
    for f in found[:2]:
        assert f is not None
        play.end(f, passed=0)
    following = play.begin()
    assert following is not None and following.task != spec.task


def test_noisy_tasks_and_their_clean_twins():
    play = Play({"noise": {"pair_share": 0.5, "pairs": 2}})
    specs = [spec for _ in range(3) if (spec := play.begin())]
    assert [spec.task.noise for spec in specs] == [1, 0, 1]
    assert specs[1].task.id == specs[2].task.id != specs[0].task.id
    for spec, passed in zip(specs, (4, 4, 2), strict=True):
        play.end(spec, passed=passed)
    assert play.task_source.metrics()["env/e0/noise_gap"] == 0.5


def test_a_weight_of_a_reward_that_nobody_gives_is_told_once_that_can_be_known():
    play = Play({"rewards": {"solved": 1.0, "slved": 0.5}})
    told = [
        play.task_source.reward_names.book(
            group_report("e0", [member(f"{n}"), member("f", judged=False)])
        )
        for n in range(64)
    ]
    assert told[:-1] == [""] * 63
    assert told[-1].startswith(
        "environment 'e0': rewards.slved weighs a reward that neither it nor a judge"
    )
    assert "given were solved" in told[-1]


def test_a_reward_that_is_given_now_and_then_may_be_weighed():
    play = Play({"rewards": {"solved": 1.0, "bonus": 0.5}})
    names = play.task_source.reward_names
    names.book(group_report("e0", [member("a", rewards={"solved": 1.0, "bonus": 1.0})]))
    assert {names.book(group_report("e0", [member("b")])) for _ in range(99)} == {""}
