"""A circuit breaker: when it trips, when it probes, when it closes; in invented time."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rl.env_table import BreakerConfig
from rl.tasks.breaker import Breaker

CONFIG = BreakerConfig(faults=4, share=0.5, window_seconds=60, cooldown_seconds=10)


def play(breaker: Breaker, name: str, faults: int, now: float):
    breaker.begin(name, now)
    return breaker.end(name, faults, 4, now)


def test_it_opens_probes_and_closes():
    breaker = Breaker(CONFIG)
    assert play(breaker, "a", 2, 0.0) is None, "two faults are not enough"
    change = play(breaker, "b", 4, 1.0)
    assert change and (change.state, change.faults, change.episodes) == ("open", 6, 8)
    assert change.seconds == 10
    assert not breaker.admits(10.9)
    assert breaker.admits(11.0)
    probing = breaker.begin("c", 11.0)
    assert probing and probing.state == "half_open"
    assert not breaker.admits(500.0), "one probe at a time"
    change = breaker.end("c", 0, 4, 12.0)
    assert change and change.state == "closed"
    assert breaker.admits(12.0)


def test_few_faults_among_many_episodes_do_not_open_it():
    breaker = Breaker(CONFIG)
    for number in range(50):
        assert play(breaker, f"g{number}", 1, number / 10) is None


def test_what_worked_for_long_does_not_keep_it_closed():
    breaker = Breaker(BreakerConfig(faults=8, share=0.75, episodes=16))
    for number in range(100):
        assert play(breaker, f"g{number}", 0, number / 100) is None
    changes = [play(breaker, f"b{number}", 4, 1.0) for number in range(3)]
    assert changes[:2] == [None, None] and changes[2] is not None
    assert (changes[2].faults, changes[2].episodes) == (12, 16)


def test_faults_of_long_ago_do_not_count():
    breaker = Breaker(CONFIG)
    assert play(breaker, "a", 3, 0.0) is None
    assert play(breaker, "b", 3, 60.5) is None
    assert play(breaker, "c", 3, 61.0) is not None


def test_each_probe_that_fails_doubles_the_cool_down_up_to_its_bound():
    breaker = Breaker(CONFIG.model_copy(update={"max_cooldown_seconds": 35.0}))
    play(breaker, "a", 4, 0.0)
    seconds = []
    for number in range(4):
        seconds.append(breaker.cooldown)
        play(breaker, f"p{number}", 4, breaker.ready_at)
    assert seconds == [10, 20, 35, 35]


def test_one_that_trips_again_soon_after_it_was_closed_rests_longer_and_later_as_at_first():
    breaker = Breaker(CONFIG)
    play(breaker, "a", 4, 0.0)
    play(breaker, "p", 0, 10.0)
    assert play(breaker, "b", 4, 20.0).seconds == 20
    play(breaker, "q", 0, 40.0)
    assert play(breaker, "c", 4, 200.0).seconds == 10


def test_what_began_before_it_tripped_does_not_count_any_more():
    breaker = Breaker(CONFIG)
    for name in "abc":
        breaker.begin(name, 0.0)
    assert breaker.end("a", 4, 4, 1.0) is not None
    assert breaker.end("b", 4, 4, 2.0) is None
    assert breaker.ready_at == 11.0
    breaker.begin("p", 11.0)
    assert breaker.end("c", 0, 4, 11.5) is None, "only the probe says whether it works again"
    assert breaker.state == "half_open"


def test_a_probe_that_was_given_up_is_made_anew():
    breaker = Breaker(CONFIG)
    play(breaker, "a", 4, 0.0)
    breaker.begin("p", 10.0)
    breaker.forget("p")
    assert breaker.admits(10.0)
    assert breaker.begin("q", 10.0) is None, "it was said already"
    assert breaker.end("q", 0, 4, 11.0).state == "closed"


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 20), st.floats(0.05, 1.0))
def test_it_opens_only_at_so_many_faults_and_such_a_share(faults, least, share):
    breaker = Breaker(BreakerConfig(faults=least, share=share, window_seconds=1e9))
    for number, count in enumerate(faults):
        change = play(breaker, f"g{number}", count, float(number))
        last = faults[: number + 1][-4:]  # four groups of four
        due = sum(last) >= least and sum(last) >= share * 4 * len(last)
        assert (change is not None) == due
        if due:
            return


class AnyOrder(RuleBasedStateMachine):
    """Groups begin and end in any order while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(CONFIG)
        self.now = 0.0
        self.open: list[str] = []
        self.number = 0

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.admits(self.now))
    @rule()
    def begin(self) -> None:
        self.number += 1
        self.breaker.begin(f"g{self.number}", self.now)
        self.open.append(f"g{self.number}")

    @precondition(lambda self: self.open)
    @rule(data=st.data(), faults=st.integers(0, 4))
    def end(self, data: st.DataObject, faults: int) -> None:
        group = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        before, probe = self.breaker.state, self.breaker.probe == group
        change = self.breaker.end(group, faults, 4, self.now)
        assert (change is None) == (self.breaker.state == before) or probe
        if probe:
            assert self.breaker.state == ("closed" if faults < 2 else "open")
        elif before != "closed":
            assert change is None

    @precondition(lambda self: self.open)
    @rule()
    def forget(self) -> None:
        self.breaker.forget(self.open.pop())

    @invariant()
    def it_admits_at_once_or_after_its_cool_down_or_waits_for_its_probe(self) -> None:
        breaker = self.breaker
        assert breaker.probe is None or breaker.probe in self.open
        assert breaker.groups <= set(self.open)
        if breaker.probe is None:
            assert breaker.admits(max(self.now, breaker.ready_at))
        assert breaker.cooldown <= CONFIG.max_cooldown_seconds


TestAnyOrder = AnyOrder.TestCase
