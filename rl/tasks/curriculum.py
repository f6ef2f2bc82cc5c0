"""Decides what an environment plays next: how difficult, how noisy, and how often one task.

Difficulty: up when the pass rate over the last groups at the present level is above `raise_at`, down below
`lower_at`. Noise: some tasks are played clean and noisy; when the clean ones pass hardly more often than the
same tasks with noise, the level goes up (LongCat-Flash-Thinking-2601, arXiv 2601.16725, section 3.3.3: mild
at first, more once the policy is robust at the present level). Extra groups: a task that few of its group
solved is played by so many groups more, each with a baseline of its own (the same section).

Plain data in, plain data out; which tasks there are is the business of `rl.tasks.streams`.
"""

from collections import deque
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from rl.env_table import CurriculumConfig, NoiseConfig


@dataclass(frozen=True)
class Play:
    """How a group plays its task. difficulty: 0 where the environment has none. noise: 0 none to 3 severe.

    pair: number of a task that is played clean and noisy. extra: one more group of a hard task. chosen: how
    its choice has drawn the task, "" where there is none.
    """

    difficulty: int = 0
    noise: int = 0
    pair: int | None = None
    extra: bool = False
    chosen: Literal["", "chance", "value"] = ""


@dataclass(frozen=True)
class Moved:
    """A level has changed. measure: the pass rate that decided it, or the gap between clean and noisy."""

    what: Literal["difficulty", "noise"]
    before: int
    after: int
    measure: float


class Curriculum:
    """One environment's; without settings it plays every task once, as it is."""

    def __init__(
        self,
        config: CurriculumConfig | None = None,
        noise: NoiseConfig | None = None,
        *,
        difficulty: int = 0,
        difficulties: int = 0,
    ) -> None:
        """difficulty: where it begins, of the levels 1 to `difficulties`; 0: the environment has none."""
        self.config = config
        self.noisy = noise
        self.difficulty = difficulty
        self.difficulties = difficulties
        self.noise = noise.level if noise else 0
        self.rates: deque[float] = deque(maxlen=config.groups if config else 1)
        self.gaps: deque[float] = deque(maxlen=noise.pairs if noise else 1)
        # Of pairs one of which has ended: whether it was the clean one, and its rate; None: it was lost.
        self.halves: dict[int, tuple[bool, float] | None] = {}
        self.pairs = 0
        self.first_pair = 1  # at the present noise
        self.due = 0.0

    def go_on(self, difficulty: int, noise: int) -> None:
        """Begin at the levels that an earlier part of the run had reached, as far as there are any now."""
        if self.difficulties and difficulty:
            self.difficulty = min(difficulty, self.difficulties)
        if self.noisy is not None and noise:
            self.noise = min(noise, self.noisy.max_level)

    def plays(self) -> list[Play]:
        """How the next task is played: by one group, or by two where it is a pair."""
        play = Play(self.difficulty, self.noise)
        if self.noisy is None:
            return [play]
        self.due += self.noisy.pair_share
        if self.due < 1:
            return [play]
        self.due -= 1
        self.pairs += 1
        return [replace(play, noise=level, pair=self.pairs) for level in (0, self.noise)]

    def ended(self, play: Play, rate: float | None) -> list[Moved]:
        """A group has ended; rate: the share of its judged episodes with full reward, None without any."""
        noise = self._noise_after(play, rate)
        present = (play.difficulty, play.noise) == (self.difficulty, self.noise)
        difficulty = None
        if rate is not None and present and not play.extra:
            self.rates.append(rate)
            difficulty = self._difficulty_after()
        return [moved for moved in (noise, difficulty) if moved is not None]

    def again(self, play: Play, rate: float | None) -> list[Play]:
        """The extra groups of a task whose group has ended so."""
        if self.config is None or rate is None or play.extra or rate > self.config.hard_below:
            return []
        return [replace(play, pair=None, extra=True, chosen="")] * self.config.extra_groups

    @property
    def gap(self) -> float | None:
        """How much more often clean tasks pass than the same ones with noise, of the last pairs."""
        return fmean(self.gaps) if self.gaps else None

    def _difficulty_after(self) -> Moved | None:
        config = self.config
        if config is None or not self.difficulties or len(self.rates) < config.groups:
            return None
        rate, before = fmean(self.rates), self.difficulty
        after = before + (rate > config.raise_at) - (rate < config.lower_at)
        if not 1 <= after <= self.difficulties or after == before:
            return None
        self.difficulty = after
        self.rates.clear()
        return Moved("difficulty", before, after, rate)

    def _noise_after(self, play: Play, rate: float | None) -> Moved | None:
        config = self.noisy
        if config is None or play.pair is None or play.pair < self.first_pair:
            return None
        if play.pair not in self.halves:
            self.halves[play.pair] = None if rate is None else (play.noise == 0, rate)
            return None
        first = self.halves.pop(play.pair)
        if first is None or rate is None:
            return None
        self.gaps.append(first[1] - rate if first[0] else rate - first[1])
        gap, before = fmean(self.gaps), self.noise
        if len(self.gaps) < config.pairs or gap > config.gap or before >= config.max_level:
            return None
        self.noise = before + 1
        self.first_pair = self.pairs + 1
        self.gaps.clear()
        self.halves.clear()
        self.rates.clear()
        return Moved("noise", before, self.noise, gap)
