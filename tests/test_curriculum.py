"""The curriculum: levels by pass rate, noise by the gap, extra groups of hard tasks."""

from hypothesis import given
from hypothesis import strategies as st

from rl.env_table import CurriculumConfig, NoiseConfig
from rl.tasks.curriculum import Curriculum, Play

CONFIG = CurriculumConfig(groups=4, extra_groups=2)
NOISE = NoiseConfig(pairs=3, pair_share=0.5)


def levels(curriculum: Curriculum, rates: list[float]) -> list[int]:
    found = []
    for rate in rates:
        curriculum.ended(curriculum.plays()[-1], rate)
        found.append(curriculum.difficulty)
    return found


def test_difficulty_follows_the_pass_rate_of_the_last_groups():
    curriculum = Curriculum(CONFIG, difficulty=1, difficulties=3)
    assert levels(curriculum, [1.0] * 12) == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert levels(curriculum, [0.5] * 8) == [3] * 8, "between the two it stays"
    assert levels(curriculum, [0.0] * 3) == [3, 3, 2], "the last four together"
    assert levels(curriculum, [0.0] * 8) == [2, 2, 2, 1, 1, 1, 1, 1]


def test_groups_of_another_level_and_extra_groups_decide_nothing():
    curriculum = Curriculum(CONFIG, difficulty=2, difficulties=3)
    for play in (Play(difficulty=1), Play(difficulty=2, extra=True)):
        for _ in range(10):
            assert curriculum.ended(play, 1.0) == []
    assert curriculum.difficulty == 2


def test_without_settings_every_task_is_played_once_and_nothing_moves():
    curriculum = Curriculum()
    for rate in (0.0, 1.0, None):
        assert curriculum.plays() == [Play()]
        assert curriculum.ended(Play(), rate) == []
        assert curriculum.again(Play(), rate) == []


def test_a_hard_task_gets_extra_groups_once():
    curriculum = Curriculum(CONFIG, difficulty=1, difficulties=3)
    extra = curriculum.again(Play(1), 0.25)
    assert extra == [Play(1, extra=True)] * 2
    assert curriculum.again(extra[0], 0.0) == []
    assert curriculum.again(Play(1), 0.3) == []
    assert curriculum.again(Play(1), None) == [], "nothing is known of it"


def test_a_share_of_the_tasks_is_played_clean_and_noisy():
    curriculum = Curriculum(noise=NOISE)
    plays = [curriculum.plays() for _ in range(4)]
    assert plays[0] == [Play(noise=1)]
    assert plays[1] == [Play(noise=0, pair=1), Play(noise=1, pair=1)]
    assert [len(p) for p in plays] == [1, 2, 1, 2]


def pair(curriculum: Curriculum, clean: float, noisy: float):
    plays = curriculum.plays()
    while len(plays) == 1:
        plays = curriculum.plays()
    first = curriculum.ended(plays[1], noisy)
    return first + curriculum.ended(plays[0], clean)


def test_noise_rises_when_the_gap_has_closed_and_not_before():
    curriculum = Curriculum(noise=NOISE)
    for _ in range(5):
        assert pair(curriculum, 1.0, 0.5) == []
    assert curriculum.gap == 0.5
    pair(curriculum, 0.5, 0.5), pair(curriculum, 0.5, 0.5)
    assert curriculum.noise == 1
    [moved] = pair(curriculum, 0.5, 0.5)
    assert (moved.what, moved.before, moved.after, moved.measure) == ("noise", 1, 2, 0.0)
    assert curriculum.gap is None, "of the new level nothing is known"
    for _ in range(20):
        pair(curriculum, 0.5, 0.6)
    assert curriculum.noise == 3, "the last level"


def test_a_pair_half_of_which_was_lost_or_that_is_of_an_earlier_level_says_nothing():
    curriculum = Curriculum(noise=NOISE)
    for order in (0, 1):
        plays = [p for _ in range(2) for p in curriculum.plays()][-2:]
        curriculum.ended(plays[order], None)
        curriculum.ended(plays[1 - order], 1.0)
    assert curriculum.gap is None and not curriculum.halves
    late = [p for _ in range(2) for p in curriculum.plays()][-2:]
    for _ in range(3):
        pair(curriculum, 0.5, 0.5)
    assert curriculum.noise == 2
    curriculum.ended(late[0], 1.0)
    curriculum.ended(late[1], 0.0)
    assert curriculum.gap is None and not curriculum.halves


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=200))
def test_levels_stay_within_their_bounds(groups):
    curriculum = Curriculum(CONFIG, NOISE, difficulty=2, difficulties=3)
    for rate, lost in groups:
        for play in curriculum.plays():
            curriculum.ended(play, None if lost else rate)
        assert 1 <= curriculum.difficulty <= 3
        assert 1 <= curriculum.noise <= 3
        assert not curriculum.halves
