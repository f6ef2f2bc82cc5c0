"""Details of a row of the list that the run's index lacks: first words of the task, named rewards, advantage.

In: rows of a page. Words and rewards come from the text index; of what that has not read yet from the record,
where it is short. The advantage is what the learner wrote of it when it last trained on it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.dashboard.growing_lines import parse
from rl.dashboard.record_text import record_text
from rl.dashboard.text_index import RowText, TextIndex
from rl.dashboard.trajectory_counts import ask
from rl.dashboard.trajectory_index import Hit, says_what_it_trained_on
from rl.dashboard.trajectory_record import Unreadable, bytes_at

LEARNED = "trajectories/learned.jsonl"
# Bytes of a record that are read for a row of a page: a longer one waits for the text index.
_SHORT = 2**16
_ADVANTAGE = re.compile(rb'"advantages": ?(\[?)(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')


@dataclass(frozen=True)
class RowDetails:
    """First words of the task, named rewards such as "solved 1, format 0.5", advantage such as "-0.71"; an
    advantage that differs from token to token says so."""

    words: str = ""
    rewards: str = ""
    advantage: str = ""


def row_details(folder: Path, texts: TextIndex, hits: Sequence[Hit]) -> dict[str, RowDetails]:
    """Details by id. Raises sqlite3.Error where an index cannot be read now."""
    told = texts.row_texts(hits)
    advantages = _advantages(folder, hits)
    found: dict[str, RowDetails] = {}
    for hit in hits:
        one = told.get(hit.row) or _from_record(folder, hit)
        rewards = ", ".join(f"{name} {value:.3g}" for name, value in one.rewards.items())
        found[hit.id] = RowDetails(one.words, rewards, advantages.get(hit.id, ""))
    return found


def _from_record(folder: Path, hit: Hit) -> RowText:
    """Words and rewards of a short record; nothing of one that cannot be read."""
    line = _line(folder, hit.file, hit.offset, _SHORT)
    record = parse(line) if line.endswith(b"\n") else None
    if record is None or record.get("id") != hit.id:
        return RowText("", {})
    text = record_text(record)
    return RowText(text.words, json.loads(text.rewards))


def _advantages(folder: Path, hits: Sequence[Hit]) -> dict[str, str]:
    """The newest advantage of each; nothing where the run does not say what it trained on."""
    if not hits or not says_what_it_trained_on(folder):
        return {}
    marks = ",".join("?" * len(hits))
    rows = ask(
        folder,
        f"select id, offset from learned where id in ({marks}) order by step",
        [hit.id for hit in hits],
    )
    found: dict[str, str] = {}
    for id, offset in rows:
        match = _ADVANTAGE.search(_line(folder, LEARNED, offset, 512))
        if match is not None:
            differs, value = match.groups()
            found[id] = f"{float(value):.2f}" + (" …" if differs else "")
    return found


def _line(folder: Path, file: str, offset: int | None, most: int) -> bytes:
    """At most so many bytes of the line there; b"" where it cannot be read."""
    try:
        return bytes_at(folder, file, offset, most)
    except Unreadable:
        return b""
