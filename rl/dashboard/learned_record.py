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
        # The last time of each of its samples, which are `ID`, and of further segments `ID~1`, `ID~2`, …
        rows = ask(
            folder,
            "select id, max(step), offset, count(*) from learned "
            "where id = ? or id glob ? || '~*' group by id",
            [hit.id, hit.id],
        )
    except sqlite3.Error:  # no such table: written before there was one
        rows = []
    if not rows:
        return not_trained(hit)
    records: list[dict[str, object]] = []
    for id, _, offset, _ in sorted(rows, key=lambda row: _segment(row[0])):
        try:
            record = line_at(folder, LEARNED, offset if isinstance(offset, int) else None)
        except Unreadable as error:
            return str(error)
        if record.get("id") != id:
            return f"{LEARNED} holds another record at byte {offset} than that of {id!r}."
        records.append(record)
    only = policy_tokens if len(records) == 1 else None
    step, times = rows[0][1], rows[0][3]
    return Learned(
        step=step if isinstance(step, int) else 0,
        advantages=_per_token(_joined(records, "advantages", only), policy_tokens),
        learner_logprobs=_per_token(_joined(records, "learner_logprobs", only), policy_tokens),
        entropies=_per_token(_joined(records, "entropies", only), policy_tokens),
        experts=_choices(_joined(records, "experts", only), policy_tokens),
        times=times,
    )


def _segment(id: object) -> int:
    number = str(id).partition("~")[2]
    return int(number) if number.isdecimal() else 0


def _joined(records: list[dict[str, object]], key: str, tokens: int | None) -> object:
    """A list per sample end to end; where a sample has one number for all its tokens, that as often. tokens:
    of the only sample; None where there are several, which tell their own."""
    found: list[object] = []
    for record in records:
        value = record.get(key)
        known = record.get("entropies")
        if number(value) is not None:
            count = len(known) if tokens is None and isinstance(known, list) else tokens or 0
            value = [value] * count
        if not isinstance(value, list):
            return None
        found += value
    return found


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
