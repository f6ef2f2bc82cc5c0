"""Watches a run's learning: tells of each alarm at the step that raises it.

Consumes the metrics of each step. Produces a sentence in the journal for each alarm, as
`rl.samples.learning_alarms` finds them; the dashboard finds the same ones in metrics.jsonl. Alarms of
`rl.samples.reward_hacking` are told with the trajectories that show them best. It ends nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rl.samples.learning_alarms import hacked_rewards, sudden_changes, watched
from rl.samples.reward_hacking import HackingMeters

# Of each metric so many steps are held.
_HELD = 200


@dataclass
class _Points:
    steps: list[int] = field(default_factory=list[int])
    values: list[float] = field(default_factory=list[float])


class LearningWatch:
    """Watches one run."""

    def __init__(self, say: Callable[..., None], hacking: HackingMeters | None = None) -> None:
        """`say(what, sentence)` tells of an alarm, `say(what, sentence, ids)` of one of `hacking`."""
        self.say = say
        self.hacking = hacking
        self._series: dict[str, _Points] = {}
        # Rewards that rise without their task, which was told.
        self._hacked: set[str] = set()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in a step, and tell of the alarms that it raises."""
        self._note(step, metrics)
        for alarm in sudden_changes(self._series):
            if alarm.step == step:
                self.say("alarm", f"warning: {alarm.text}")
        hacked = {alarm.key: alarm for alarm in hacked_rewards(self._series)}
        for key in hacked.keys() - self._hacked:
            self.say("alarm", f"warning: {hacked[key].text}")
        self._hacked = set(hacked)
        for one in self.hacking.look() if self.hacking else ():
            sentence = f"warning: {one.text}; look at {', '.join(one.trajectories)}"
            self.say(f"hacking {one.env} {one.against}", sentence, one.trajectories)

    def restore(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Take in the earlier parts of the run, in order: lines of metrics.jsonl."""
        for line in lines:
            self._note(int(line.get("step", 0)), line)
            if self.hacking:
                self.hacking.restore(line)
        self._hacked = {alarm.key for alarm in hacked_rewards(self._series)}

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        for key in watched(metrics):
            if math.isfinite(value := metrics[key]):
                points = self._series.setdefault(key, _Points())
                points.steps.append(step)
                points.values.append(value)
                del points.steps[:-_HELD], points.values[:-_HELD]
