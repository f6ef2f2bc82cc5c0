"""The learner's numbers for a trajectory's tokens: trajectories/learned.jsonl, by the index's `learned`
table.

In: a file and a table that older runs do not have, and that may be broken. Out: numbers per policy token, in
the order of the sequence (the completions of all turns end to end), or a sentence that says why there are
none.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rl.dashboard.series import number
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_index import Hit
from rl.dashboard.trajectory_record import Unreadable, line_at
from rl.record.run_folder import LEARNED

Numbers = tuple[float | None, ...]
Choices = tuple[tuple[int, ...], ...]
_EXPERTS = TypeAdapter(tuple[Choices, ...])


@dataclass(frozen=True)
class Learned:
    """One sample as it was trained on, in step `step`.

    advantages, learner_logprobs, entropies: one number per policy token; empty where there is none. experts:
    per policy token those that were chosen, layer by layer; empty where that is not recorded. times: how
    often it was trained on; this is the last time.
    """

    step: int
    advantages: Numbers
    learner_logprobs: Numbers
    entropies: Numbers
    experts: tuple[Choices, ...]
    times: int


def read_learned(folder: Path, hit: Hit, policy_tokens: int) -> Learned | str:
    """Read the learner's numbers of a trajectory, or a sentence that says why they are not known."""
    try:
        rows = ask(
            folder,
            "select step, offset, count(*) over () from learned where id = ? order by step desc limit 1",
            [hit.id],
        )
    except sqlite3.Error:  # no such table: written before there was one
        rows = []
    if not rows:
        return not_trained(hit)
    step, offset, times = rows[0]
    try:
        record = line_at(folder, LEARNED, offset if isinstance(offset, int) else None)
    except Unreadable as error:
        return str(error)
    if record.get("id") != hit.id:
        return f"{LEARNED} holds another record at byte {offset} than that of {hit.id!r}."
    advantages = record.get("advantages")
    if number(advantages) is not None:
        advantages = [advantages] * policy_tokens
    return Learned(
        step=step if isinstance(step, int) else 0,
        advantages=_per_token(advantages, policy_tokens),
        learner_logprobs=_per_token(record.get("learner_logprobs"), policy_tokens),
        entropies=_per_token(record.get("entropies"), policy_tokens),
        experts=_choices(record.get("experts"), policy_tokens),
        times=times,
    )


def not_trained(hit: Hit) -> str:
    """Say why there is nothing of the learner's."""
    if hit.outcome == "sample":
        return "The run has no record of what the learner made of it."
    why = hit.outcome or f"it is of the split {hit.split}"
    return f"It was not trained on ({why})."


def _per_token(values: object, tokens: int) -> Numbers:
    """One number per token, None for what is none; empty where there are not as many."""
    if not isinstance(values, list) or len(values) != tokens:
        return ()
    return tuple(number(value) for value in values)


def _choices(values: object, tokens: int) -> tuple[Choices, ...]:
    """Chosen experts per token and layer; empty where there are not as many."""
    try:
        found = _EXPERTS.validate_python(values)
    except ValidationError:
        return ()
    return found if len(found) == tokens else ()
