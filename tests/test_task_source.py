"""TaskSource: what becomes of groups decides who begins the next one, with which task."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from fakes import Counting, group_report, member
from test_streams import Graded, GradedConfig

from envs.env import Env, EnvConfig, Task
from rl.config import RunConfig
from rl.record.position import POSITION, read_position, write_position
from rl.samples.group import GroupSpec
from rl.tasks.streams import OutOfTasks
from rl.tasks.task_source import TaskSource


class Play:
    """Plays groups of four in an invented second each."""

    def __init__(self, *tables: dict[str, Any], env: Env | None = None) -> None:
        """env: the first one, where it is not to count."""
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
        instances[:1] = [env] if env is not None else instances[:1]
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
                reward=float(n < passed),
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


CHOICE = {"candidates": 4, "explore": 0.25}


def few(n: int) -> Env:
    """An environment of n tasks, which come again and again; the middling ones are multiples of three."""

    class Few(Counting):
        def tasks(self, split, seed):
            while True:
                yield from (Task(self.name, {"n": i}) for i in range(n))

    return Few(EnvConfig())


def chosen_play(play: Play, count: int) -> Counter:
    """Play so many groups, of which multiples of three pass by half and no other ever."""
    played: Counter[int] = Counter()
    for _ in range(count):
        spec = play.begin()
        assert spec is not None
        n = spec.task.data["n"]
        played[n % 3] += 1
        play.end(spec, passed=2 if n % 3 == 0 else 0)
    return played


def test_tasks_that_teach_are_played_more_often_and_the_metrics_say_so():
    play = Play({"choice": CHOICE}, env=few(30))
    chosen_play(play, 60)
    played = chosen_play(play, 120)
    assert played[0] > 80 > 120 / 3, "by chance a third"
    metrics = play.task_source.metrics()
    assert metrics["forecast/e0/value/zero_variance"] < 0.5
    assert metrics["forecast/e0/chance/zero_variance"] > 0.5
    assert metrics["forecast/e0/log_loss"] < metrics["forecast/e0/log_loss_base"]
    assert 0 < metrics["forecast/e0/known"] <= 1
    assert not any(key.startswith("forecast/") for key in Play({}).task_source.metrics())


def test_a_choice_keeps_the_shares_of_environments():
    play = Play({"weight": 3, "choice": CHOICE}, {"weight": 1}, env=few(30))
    assert play.play(40) == {"e0": 30, "e1": 10}


def test_a_task_in_flight_makes_room_for_others():
    play = Play({"choice": {"candidates": 8, "explore": 0.0}}, env=few(8))
    begun = [play.begin(room=8 - n) for n in range(8)]
    assert len({spec.task.id for spec in begun if spec}) == 8
    for spec in begun:
        assert spec is not None
        play.task_source.put_back(spec.id)
    choice = play.task_source.choices["e0"]
    assert not choice.begun and not choice.in_flight, "what was given up counts no more"


def test_a_group_that_ended_says_what_was_forecast_and_one_of_faults_says_nothing():
    play = Play({"choice": CHOICE}, env=few(30))
    spec = play.begin()
    assert spec is not None
    members = [member(f"m{n}", versions=(3, 4), rewards={"solved": n % 2}) for n in range(4)]
    ended = play.task_source.end(replace(group_report("e0", members), spec=spec), 1.0)
    assert ended["forecast"] == ended["base_rate"] == 0.5
    assert (ended["passes"], ended["episodes"], ended["known"]) == (2, 4, False)
    assert play.task_source.choices["e0"].state().version == 3
    spec = play.begin()
    assert spec is not None
    faults = [member(f"m{n}", judged=False, stop_reason="env_fault") for n in range(4)]
    assert play.task_source.end(replace(group_report("e0", faults), spec=spec), 1.0) == {}


def test_a_choice_goes_on_where_it_was(tmp_path):
    whole = Play({"choice": CHOICE}, env=few(30))
    chosen_play(whole, 40)
    (tmp_path / POSITION).write_text(
        write_position(40, whole.task_source.position()), encoding="utf-8"
    )
    after = Play({"choice": CHOICE}, env=few(30))
    after.task_source.restore(read_position(tmp_path)[1])
    after.number = whole.number
    for _ in range(40):
        specs = [play.begin() for play in (whole, after)]
        assert specs[0] is not None and specs[0] == specs[1]
        for play in (whole, after):
            play.end(specs[0], passed=2 if specs[0].task.data["n"] % 3 == 0 else 0)
    assert after.task_source.position() == whole.task_source.position()


@pytest.mark.parametrize(
    ("choice", "wrong"),
    [
        ({"forecast": "gamma"}, "choice.forecast"),
        ({"candidates": 1}, "choice.candidates"),
        ({"forget": 0}, "choice.forget"),
        ({"explore": 1.0}, "choice.explore"),
    ],
)
def test_wrong_settings_of_a_choice_are_named(choice, wrong):
    with pytest.raises(ValueError, match=wrong):
        Play({"choice": choice})


def test_endless_tasks_are_chosen_by_their_features():
    class Endless(Counting):
        def tasks(self, split, seed):
            rng = random.Random(seed)
            while True:
                yield Task(self.name, {"n": rng.randrange(3), "id": rng.random()})

        def task_features(self, task):
            return {"kind": ["easy", "middling", "hard"][task.data["n"]]}

    env = Endless(EnvConfig())
    play = Play({"choice": {"forecast": "flgp", "candidates": 6}}, env=env)
    chosen_play(play, 60)
    assert chosen_play(play, 60)[0] > 40
    metrics = play.task_source.metrics()
    assert metrics["forecast/e0/known"] == 0.0
    assert metrics["forecast/e0/log_loss"] < metrics["forecast/e0/log_loss_base"]


def test_features_that_cannot_be_told_are_one_sentence():
    class Odd(Counting):
        def task_features(self, task):
            raise KeyError("length")

    play = Play({"choice": {"forecast": "flgp"}}, env=Odd(EnvConfig()))
    with pytest.raises(
        OutOfTasks, match="environment 'e0' cannot tell the features of a task: KeyError"
    ):
        while True:
            play.begin()
