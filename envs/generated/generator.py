"""Makes tasks: a chain is drafted, worded and verified, until one is accepted; the same seed makes the same
task.

In: a domain, a seed as text, the difficulty. Out: a verified task, and why the tries before it were not
accepted."""

import random
from collections import Counter
from dataclasses import dataclass, field

from envs.generated.domain import Domain
from envs.generated.sampler import NoChain, draft
from envs.generated.task_data import Difficulty, GeneratedTask
from envs.generated.verification import Rejected, verified
from envs.generated.wording import finished

MOST_TRIES = 200


class NoTask(RuntimeError):
    """A domain that makes no task of this difficulty; the sentence says what stood in the way."""


@dataclass
class Tally:
    """How it went. reasons: tries by outcome, "accepted" among them. used: acts by name. seen: chains by
    their shape and rows, so that no task comes twice."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    used: Counter[str] = field(default_factory=Counter[str])
    drawn: Counter[str] = field(default_factory=Counter[str])


def make_task(
    domain: Domain, seed: str, difficulty: Difficulty, tally: Tally | None = None
) -> GeneratedTask:
    """A verified task. Raises NoTask."""
    tally = tally or Tally()
    for attempt in range(MOST_TRIES):
        rng = random.Random(f"{domain.name}/{seed}/{attempt}")
        try:
            made = draft(domain, rng, difficulty, tally.drawn)
        except NoChain:
            tally.reasons["no chain"] += 1
            continue
        try:
            task = verified(domain, finished(made, seed), rng)
        except Rejected as error:
            tally.reasons[error.reason] += 1
            continue
        finally:
            made.world.close()
        tally.reasons["accepted"] += 1
        tally.used.update(asked.tool for asked in made.asked)
        return task
    why = ", ".join(f"{reason} {n}" for reason, n in tally.reasons.most_common())
    raise NoTask(
        f"domain {domain.name} makes no task of {difficulty!r} in {MOST_TRIES} tries: {why}"
    )
