"""How fast requests are moved to newer weights: bounded steps, and every request in the end."""

from rollout.rolling import FIRST_BUDGET, TARGET_STEPS, Pace, next_to_move


def test_a_pair_of_steps_takes_no_longer_than_a_few_undisturbed_ones():
    pace = Pace()
    assert pace.budget() == FIRST_BUDGET
    for _ in range(8):
        pace.note(0.080, writing=32, prefill=0)
    # 16 of 32 requests write (40 ms at most), and 200 tokens of prefixes take the rest.
    pace.note(0.140, writing=16, prefill=200)
    per_token = 0.100 / 200
    assert pace.budget() == int((TARGET_STEPS - 2) * 0.080 / per_token)
    assert 2 * 0.080 + pace.budget() * per_token <= TARGET_STEPS * 0.080


def test_a_fixed_budget_is_not_measured():
    pace = Pace(96)
    pace.note(1.0, writing=1, prefill=0)
    pace.note(1.0, writing=0, prefill=500)
    assert pace.budget() == 96


def test_short_prefills_are_no_measure_and_one_slow_step_changes_little():
    pace = Pace()
    for _ in range(9):
        pace.note(0.010, writing=4, prefill=0)
        pace.note(0.030, writing=4, prefill=100)
    budget = pace.budget()
    pace.note(3.0, writing=4, prefill=4)
    assert pace.budget() == budget
    pace.note(3.0, writing=4, prefill=100)
    assert pace.budget() == budget


def test_the_shortest_prefixes_move_first_within_the_budget():
    assert next_to_move([300, 100, 200, 50], 0, 360) == [3, 1, 2]
    assert next_to_move([300, 100, 200, 50], 0, 349) == [3, 1]


def test_one_request_moves_however_long_it_is_and_whoever_waits():
    assert next_to_move([500, 400], 0, 100) == [1]
    assert next_to_move([500, 400], 10_000, 100) == [1]
    assert next_to_move([], 10_000, 100) == []


def test_prompts_that_wait_have_up_to_half_of_the_budget():
    assert next_to_move([100] * 8, 0, 400) == [0, 1, 2, 3]
    assert next_to_move([100] * 8, 100, 400) == [0, 1, 2]
    assert next_to_move([100] * 8, 10_000, 400) == [0, 1]
