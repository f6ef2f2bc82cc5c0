"""The supervision of environments: which one begins the next group, with which task, and which one rests.

Consumes what became of groups. Produces the next (environment, task), or none where nothing may begin now.
Breakers (`rl.tasks.breaker`), the mixture (`rl.tasks.mixture`), curricula (`rl.tasks.curriculum`) and choices
of tasks (`rl.tasks.choice`) decide; this puts them together, says in a sentence what has changed, and counts.
No clock, no Ray: time, in seconds, is an argument.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from envs.env import Env, Task
from rl.env_table import EnvTable
from rl.record.position import Position
from rl.samples.group import GroupReport
from rl.samples.metrics import passed
from rl.samples.reward_names import RewardNames
from rl.tasks.breaker import LEVEL, Breaker, Change
from rl.tasks.choice import make_choice
from rl.tasks.curriculum import Curriculum, Moved, Play
from rl.tasks.mixture import Mixture, Quota
from rl.tasks.streams import TaskStreams

# Stop reasons for which a breaker blames the environment. Its host's death may be another's doing: hence a
# breaker asks for a share of the episodes, not for a number alone.
BLAMED = ("env_fault", "host_fault")
# The mixture that was begun and trained is counted over so many groups.
RECENT = 256


class TaskSource:
    """Picks the next environment and task over all environments of a run."""

    def __init__(
        self,
        tables: Sequence[EnvTable],
        envs: Sequence[Env],
        group_size: int,
        seed: int,
        say: Callable[[str, str], None] = lambda label, sentence: None,
        kept: Callable[[int], int] = lambda concurrency: 0,
    ) -> None:
        """envs: an instance of each table. `say(label, sentence)`: tells the user what has changed.

        `kept(concurrency)`: how many of an environment's instances are not for training.
        """
        self.say = say
        self.tasks = TaskStreams(tables, envs, "train", seed)
        self.breakers = {table.label: Breaker(table.breaker) for table in tables}
        self.mixture = Mixture({table.label: _quota(table, group_size, kept) for table in tables})
        self.curricula = {
            table.label: _curriculum(table, env) for table, env in zip(tables, envs, strict=True)
        }
        self.choices = {
            table.label: choice
            for table, env in zip(tables, envs, strict=True)
            if (choice := make_choice(table, env, group_size, seed)) is not None
        }
        # Tasks to be played before new ones: given up before, the other half of a pair, extra groups.
        self.again: dict[str, deque[tuple[Task, Play]]] = {t.label: deque() for t in tables}
        self.playing: dict[str, tuple[str, Task, Play]] = {}
        self.in_flight: Counter[str] = Counter()
        self.begun: deque[str] = deque(maxlen=RECENT)
        self.trained: deque[str] = deque(maxlen=RECENT)
        self.retries: Counter[str] = Counter()
        self.reward_names = RewardNames({table.label: table.rewards for table in tables})
        self.judged = 0

    def begin(self, group: str, now: float, room: int = 1) -> tuple[str, Task] | None:
        """The environment and the task of a group that begins now; None where none may.

        room: groups that may begin now, this one included. Raises OutOfTasks.
        """
        allowed = {label for label, breaker in self.breakers.items() if breaker.admits(now)}
        label = self.mixture.next(allowed, self.in_flight, room)
        if label is None:
            return None
        if not self.again[label]:
            self.again[label] += self._drawn(label)
        task, play = self.again[label].popleft()
        if choice := self.choices.get(label):
            choice.begin(group, task, play.chosen)
        self.playing[group] = (label, task, play)
        self.in_flight[label] += 1
        self.begun.append(label)
        self._say(label, self.breakers[label].begin(group, now))
        return label, task

    def end(self, report: GroupReport, now: float) -> dict[str, object]:
        """A group has been played. Returns what was forecast of it and what came; {} where nothing was."""
        group = report.spec.id
        label, task, play = self._leave(group)
        self.retries[label] += report.retries
        judged = [member for member in report.members if member.judged]
        faults = sum(member.stop_reason in BLAMED for member in report.members)
        self.judged += len(judged)
        breaker = self.breakers[label]
        if faults or judged:
            self._say(label, breaker.end(group, faults, faults + len(judged), now))
        else:  # whoever failed, it was not the environment
            breaker.forget(group)
        curriculum = self.curricula[label]
        rate = fmean(passed(m.rewards, m.reward) for m in judged) if judged else None
        for moved in curriculum.ended(play, rate):
            self._say(label, moved)
        self.again[label] += [(task, extra) for extra in curriculum.again(play, rate)]
        choice = self.choices.get(label)
        return choice.end(report) if choice else {}

    def lost(self, group: str) -> None:
        """A group came to no end, by no fault of its environment."""
        label, _, play = self._leave(group)
        self._forget(label, group)
        self.curricula[label].ended(play, None)

    def put_back(self, group: str) -> None:
        """A group was given up; its task is to be played anew, before others."""
        label, task, play = self._leave(group)
        self._forget(label, group)
        self.again[label].append((task, play))

    def train(self, labels: Iterable[str]) -> None:
        """Groups of these environments have been trained on."""
        self.trained.extend(labels)

    def position(self) -> Position:
        """For a run that is to go on. Breakers and the rates of curricula begin anew there."""
        drawn: dict[str, dict[str, int]] = {label: {} for label in self.breakers}
        for (label, difficulty), count in self.tasks.drawn.items():
            drawn[label][str(difficulty)] = count
        levels = {label: [c.difficulty, c.noise] for label, c in self.curricula.items()}
        choices = {label: choice.state() for label, choice in self.choices.items()}
        return Position(drawn, dict(self.mixture.credit), levels, choices)

    def restore(self, position: Position) -> None:
        """Go on from there: no task that was begun before is drawn again. Before the first `begin`."""
        for label, counts in position.drawn.items():
            for difficulty, count in counts.items():
                self.tasks.drawn[label, int(difficulty)] = count
        self.mixture.credit |= position.credit
        for label, (difficulty, noise) in position.levels.items():
            self.curricula[label].go_on(difficulty, noise)
        for label, state in position.choices.items():
            if choice := self.choices.get(label):
                choice.restore(state)

    @property
    def open_breakers(self) -> list[str]:
        """Environments whose breaker is not closed."""
        return [label for label, b in self.breakers.items() if b.state != "closed"]

    @property
    def all_failed(self) -> bool:
        """True if none has ever worked, and every environment rests for the second time at least: the first
        time may be another's doing, that takes a host along."""
        tried = all(b.state == "open" and b.trips > 1 for b in self.breakers.values())
        return not self.judged and tried

    def next_probe(self, now: float) -> float | None:
        """Seconds until a cool-down is over; None where none goes on. A probe that is due waits for room."""
        waits = [b.ready_at - now for b in self.breakers.values() if b.state == "open"]
        return min((seconds for seconds in waits if seconds > 0), default=None)

    def metrics(self) -> dict[str, float]:
        """`mix/<env>/<asked|begun|trained>`, `env/<env>/<breaker|retries|difficulty|noise|noise_gap>`, and
        `forecast/<env>/...` (`rl.tasks.calibration`) where tasks are chosen."""
        values: dict[str, float] = {}
        for label, share in self.mixture.asked().items():
            values[f"mix/{label}/asked"] = share
            for name, groups in (("begun", self.begun), ("trained", self.trained)):
                values[f"mix/{label}/{name}"] = groups.count(label) / max(1, len(groups))
            values[f"env/{label}/breaker"] = LEVEL[self.breakers[label].state]
            values[f"env/{label}/retries"] = float(self.retries[label])
            curriculum = self.curricula[label]
            if curriculum.difficulty:
                values[f"env/{label}/difficulty"] = float(curriculum.difficulty)
            if curriculum.noisy is not None:
                values[f"env/{label}/noise"] = float(curriculum.noise)
            if curriculum.gap is not None:
                values[f"env/{label}/noise_gap"] = curriculum.gap
        for label, choice in self.choices.items():
            for name, value in choice.calibration.metrics().items():
                values[f"forecast/{label}/{name}"] = value
        return values

    def _drawn(self, label: str) -> list[tuple[Task, Play]]:
        """The next task of an environment and how it is played: by one group, or as a pair by two."""
        plays = self.curricula[label].plays()
        first = plays[0]

        def draw() -> Task:
            return self.tasks.next(label, first.difficulty)

        choice = self.choices.get(label)
        if choice is None:
            task = draw()
        else:
            task, chosen = choice.next(lambda: _noisy(draw(), first.noise))
            plays = [replace(first, chosen=chosen), *plays[1:]]
        return [(_noisy(task, play.noise), play) for play in plays]

    def _forget(self, label: str, group: str) -> None:
        """Forget a group that came to no end."""
        self.breakers[label].forget(group)
        if choice := self.choices.get(label):
            choice.forget(group)

    def _leave(self, group: str) -> tuple[str, Task, Play]:
        left = self.playing.pop(group)
        self.in_flight[left[0]] -= 1
        return left

    def _say(self, label: str, change: Change | Moved | None) -> None:
        if change is not None:
            self.say(label, sentence(label, change))


def sentence(label: str, change: Change | Moved) -> str:
    """Put a change into a sentence for the user."""
    if isinstance(change, Moved):
        why = "pass rate" if change.what == "difficulty" else "gap between clean and noisy"
        return (
            f"environment {label!r}: {change.what} {change.before} -> {change.after} "
            f"({why} {change.measure:.2f})"
        )
    failed = f"{change.faults} of {change.episodes} episodes ended in its faults"
    match change.state:
        case "open":
            return (
                f"environment {label!r}: {failed}; it gets no new groups for {change.seconds:g} s, the "
                "others have its share"
            )
        case "half_open":
            return f"environment {label!r}: one group tries whether it works again"
        case "closed":
            return f"environment {label!r} works again ({failed}) and has its share back"


def _quota(table: EnvTable, group_size: int, kept: Callable[[int], int]) -> Quota:
    bound = table.concurrency
    most = None if bound is None else (bound - kept(bound)) // group_size
    return Quota(table.weight, table.over_sample, most)


def _curriculum(table: EnvTable, env: Env) -> Curriculum:
    difficulties = env.difficulties if table.curriculum else 0
    difficulty = getattr(env.config, "difficulty", 1) if difficulties else 0
    return Curriculum(
        table.curriculum, table.noise, difficulty=difficulty, difficulties=difficulties
    )


def _noisy(task: Task, level: int) -> Task:
    return replace(task, noise=level) if level else task
