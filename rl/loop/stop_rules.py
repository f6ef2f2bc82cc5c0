"""Stop rules of a run: patience with held-out results, a budget, and the guard against collapse.

Consumes the metrics of each step and of each evaluation, and counts of groups where no step comes.
Produces whether training ends there and the sentence that says why. A broken rule of a guard that only warns
is told once, and again after it has recovered. No clock and no files: the parts of a run before a resume are
their lines of metrics.jsonl, told in order. The settings are `rl.stop_config`'s.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from rl.record.best_checkpoint import too_few_judged
from rl.stop_config import Ceiling, Floor, StopConfig

# The metrics that a rule of the guard adds up, and what a reader calls the sum.
GUARDED = {
    "entropy": (("loss/entropy",), "the entropy"),
    "clipped": (("loss/clipped_pos", "loss/clipped_neg"), "the share of clipped tokens"),
    "parity": (("parity/mean_abs_dlogp",), "the difference of engine and learner in log-prob"),
    "zero_variance": (("rollout/all/zero_variance",), "the share of groups without variance"),
    "reward": (("rollout/all/reward",), "the mean reward"),
}


class StopRules:
    """The rules of one run. `sentence` says why training ends; "" while it goes on."""

    def __init__(self, settings: StopConfig, steps: int, say: Callable[[str, str], None]) -> None:
        """steps: of the whole run. `say(what, sentence)` tells of a warning and of the end."""
        self.settings = settings
        self.steps = steps
        self.say = say
        self.sentence = ""
        # True if the guard ends the run, which is then a failed one.
        self.collapsed = False
        self._seconds = 0.0
        self._tokens = 0.0
        # The best evaluation: its result and step, and how many in a row have not been better.
        self._best = -math.inf
        self._best_step = 0
        self._misses = 0
        guard: dict[str, Floor | Ceiling | None] = {
            "entropy": settings.entropy,
            "clipped": settings.clipped,
            "parity": settings.parity,
            "zero_variance": settings.zero_variance,
            "reward": settings.reward,
        }
        on = settings.on_collapse != "off"
        self._guard = {name: rule for name, rule in guard.items() if rule is not None and on}
        self._last = {name: deque[float](maxlen=rule.steps) for name, rule in self._guard.items()}
        self._warned: set[str] = set()

    def step(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take in a step of this part of the run. Returns True if training ends after it."""
        self._note(metrics)
        if self.sentence:
            return True
        broken = self._broken(step)
        if self.settings.on_collapse == "end" and broken:
            self.collapsed = True
            self._end(step, f"it has collapsed: {'; '.join(broken.values())}")
            return True
        for name in [name for name in broken if name not in self._warned]:
            self.say("guard", f"warning: training may be collapsing at step {step}: {broken[name]}")
        self._warned = set(broken)
        # The last step ends training anyway.
        if step < self.steps and (why := self._spent(step) or self._impatient()):
            self._end(step, why)
        return bool(self.sentence)

    def starved(self, step: int, groups: int, judged: int, unused: int) -> bool:
        """Take in that of `judged` groups since this step `unused` gave no sample, for a batch of `groups`.

        Returns True if training ends for that: as many groups as `stop.zero_variance.steps` batches have were
        played in vain, and no step comes whose metrics the guard could look at.
        """
        rule = self._guard.get("zero_variance")
        if rule is None or judged < rule.steps * groups or not rule.broken(unused / judged):
            return False
        what = (
            f"{unused} of the {judged} groups since then gave nothing to learn from, so no batch fills "
            "(stop.zero_variance)"
        )
        if self.settings.on_collapse == "end":
            self.collapsed = True
            self._end(step, f"it has collapsed: {what}")
        elif "starved" not in self._warned:
            self._warned.add("starved")
            self.say("guard", f"warning: training may have collapsed after step {step}: {what}")
        return bool(self.sentence)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in an evaluation that began after a step; one equal to the best is no better, and one that
        ended in faults for more than half says nothing."""
        value = metrics.get(self.settings.metric)
        few = too_few_judged(metrics.get("eval/faults", 0.0))
        if value is None or not math.isfinite(value) or few:
            return
        if value > self._best:
            self._best, self._best_step, self._misses = value, step, 0
        else:
            self._misses += 1

    def restore(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Take in the earlier parts of the run, in order: lines of metrics.jsonl."""
        for line in lines:
            self._note(line)
            self.evaluated(int(line.get("step", 0)), line)

    def _note(self, metrics: Mapping[str, float]) -> None:
        self._seconds += metrics.get("time/total_seconds", 0.0)
        self._tokens += metrics.get("rollout_tokens", 0.0)
        for name, last in self._last.items():
            found = [metrics[key] for key in GUARDED[name][0] if key in metrics]
            if found and math.isfinite(sum(found)):  # a step that has no such number says nothing
                last.append(sum(found))

    def _broken(self, step: int) -> dict[str, str]:
        """A sentence for each rule of the guard that every one of its last steps breaks."""
        sentences: dict[str, str] = {}
        for name, rule in self._guard.items():
            last = self._last[name]
            if len(last) == rule.steps and all(map(rule.broken, last)):
                when = "at the last step" if rule.steps == 1 else f"in each of {rule.steps} steps"
                sentences[name] = (
                    f"{GUARDED[name][1]} was {rule.said} {when}, {last[-1]:.3g} at step {step} "
                    f"(stop.{name})"
                )
        return sentences

    def _spent(self, step: int) -> str:
        """The sentence for the first budget that is used up; "" where none is."""
        budgets = (
            ("max_steps", "steps", float(step), self.settings.max_steps),
            ("max_seconds", "seconds of training", self._seconds, self.settings.max_seconds),
            ("max_tokens", "tokens played", self._tokens, self.settings.max_tokens),
        )
        for name, what, used, most in budgets:
            if most and used >= most:
                return f"the budget is used up: {used:,.0f} {what} (stop.{name} = {most:g})"
        return ""

    def _impatient(self) -> str:
        patience = self.settings.patience
        if not patience or self._misses < patience:
            return ""
        return (
            f"{self.settings.metric} was not above the {self._best:.3g} of step {self._best_step} in "
            f"{self._misses} evaluations (stop.patience = {patience})"
        )

    def _end(self, step: int, why: str) -> None:
        self.sentence = f"training ends after step {step} of {self.steps}: {why}"
        self.say("stop", self.sentence)
