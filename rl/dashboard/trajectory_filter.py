"""The filter and order of a page of trajectories, as its address says it and as SQL asks for it.

In: parameters of an address, which anybody may have written. Out: a `where` and an order for the index, whose
text is all ours: what the address says is bound as values.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

# Outcome of a trajectory that was neither trained on nor dropped, such as a held-out one.
NO_OUTCOME = "none"
WITH, WITHOUT = "with", "without"
NEWEST = "newest"
# Name in the address: what is compared. The newest come first, since rows are only ever added.
ORDERS = {
    NEWEST: "rowid",
    "reward": "coalesce(reward, -1e999)",
    "tokens": "coalesce(tokens, -1)",
    "seconds": "coalesce(seconds, -1)",
    "version": "coalesce(last_version, -1)",
}
_LARGEST = 2**53
# Name of the text index in a question that is attached to it, and its columns.
TEXTS = "texts"
COLUMNS = ("messages", "tools", "errors")
MOST_TEXT, MOST_IDS = 200, 2000
# Scripts without spaces between words: each letter is a word, in the index and in what is asked for.
_LETTERS = re.compile("([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")


@dataclass(frozen=True)
class TrajectoryFilter:
    """A filter of trajectories; an empty text and None ask for nothing.

    outcome: as the index has it, or `none`; fault: `with` or `without`; version: one that wrote some of it.
    step: one that trained on it; during: one in whose time it was finished. task: its id. text: words that it
    has to hold, all of them, in its messages, tools or errors as `within` says. order: of `ORDERS`, the
    highest first, or the lowest with a minus before it, such as `-reward`. span: unix seconds that `during`
    stands for, or `step` where the run does not say what it trained on; it is in no address. ids: of chosen
    trajectories, with commas between them.
    """

    env: str = ""
    split: str = ""
    stop: str = ""
    outcome: str = ""
    fault: str = ""
    reward_min: float | None = None
    reward_max: float | None = None
    version: int | None = None
    tokens_min: int | None = None
    tokens_max: int | None = None
    step: int | None = None
    during: int | None = None
    task: str = ""
    ids: str = ""
    text: str = ""
    within: str = ""
    order: str = NEWEST
    page: int = 1
    span: tuple[float, float] | None = None

    @property
    def query(self) -> list[tuple[str, str]]:
        """The parameters of an address that asks for the same; what is as always is left out."""
        standard = TrajectoryFilter()
        values = (
            (f.name, getattr(self, f.name), getattr(standard, f.name))
            for f in fields(self)
            if f.name != "span"
        )
        return [(name, _said(value)) for name, value, usual in values if value != usual]

    @property
    def key(self) -> str:
        """The column, or expression of columns, that the order compares."""
        return ORDERS[self.order.removeprefix("-")]

    @property
    def lowest_first(self) -> bool:
        """True if the order goes up."""
        return self.order.startswith("-")

    def without_rewards(self) -> "TrajectoryFilter":
        """The same for any reward."""
        return replace(self, reward_min=None, reward_max=None)

    def where(self) -> tuple[str, list[float | str]]:
        """A condition on rows of the index, and the values that are bound in it."""
        asked: list[tuple[str, float | str | None]] = [
            ("env = ?", self.env or None),
            ("split = ?", self.split or None),
            ("stop_reason = ?", self.stop or None),
            ("reward >= ?", self.reward_min),
            ("reward <= ?", self.reward_max),
            ("first_version <= ?", self.version),
            ("last_version >= ?", self.version),
            ("tokens >= ?", self.tokens_min),
            ("tokens <= ?", self.tokens_max),
            ("task = ?", self.task or None),
            (
                "id in (select value from json_each(?))",
                json.dumps(self.ids.split(",")) if self.ids else None,
            ),
            (
                f"rowid in (select rowid from {TEXTS}.words where words match ?)",
                words_query(self.text, self.within) if self.text else None,
            ),
        ]
        if self.step is not None and self.span is None:
            asked.append(("id in (select id from learned where step = ?)", self.step))
        elif self.step is not None or self.during is not None:
            begin, end = self.span or (0.0, 0.0)
            finished = "start + coalesce(seconds, 0)"
            asked += [(f"{finished} > ?", begin), (f"{finished} <= ?", end)]
        if self.outcome:
            asked.append(("outcome = ?", "" if self.outcome == NO_OUTCOME else self.outcome))
        if self.fault:
            asked.append((f"(coalesce(fault, '') {'!=' if self.fault == WITH else '='} ?)", ""))
        given = [(condition, value) for condition, value in asked if value is not None]
        return " and ".join(c for c, _ in given) or "1", [value for _, value in given]


def spaced(text: str) -> str:
    """A text in which each letter of a script without spaces stands alone."""
    return text if text.isascii() else _LETTERS.sub(r" \1 ", text)


def words_query(text: str, within: str = "") -> str:
    """The question to FTS5: all words of the text, each as the beginning of one; "words in quotes" as they
    stand. Nothing of the text is taken for FTS5's own language."""
    # FTS5 reads a question up to its first NUL.
    parts = re.findall(r'"[^"]*"|[^\s"]+', text.replace("\0", " "))
    phrases = [
        '"' + spaced(part.strip('"')).strip() + '"' + ("" if part.startswith('"') else "*")
        for part in parts
        if any(letter.isalnum() for letter in part)
    ]
    wanted = " AND ".join(phrases) or '""'
    return f"{{{within}}} : ({wanted})" if within else wanted


def read_filter(query: Mapping[str, str]) -> TrajectoryFilter:
    """Read the filter from an address; what cannot be meant is taken as not asked."""
    fault, order = query.get("fault", ""), query.get("order", NEWEST)
    return TrajectoryFilter(
        env=query.get("env", ""),
        split=query.get("split", ""),
        stop=query.get("stop", ""),
        outcome=query.get("outcome", ""),
        fault=fault if fault in (WITH, WITHOUT) else "",
        reward_min=_number(query.get("reward_min")),
        reward_max=_number(query.get("reward_max")),
        version=_whole(query.get("version")),
        tokens_min=_whole(query.get("tokens_min")),
        tokens_max=_whole(query.get("tokens_max")),
        step=_whole(query.get("step")),
        during=_whole(query.get("during")),
        task=query.get("task", "")[:200],
        ids=query.get("ids", "")[:MOST_IDS],
        text=query.get("text", "")[:MOST_TEXT],
        within=within if (within := query.get("within", "")) in COLUMNS else "",
        order=order if order.removeprefix("-") in ORDERS else NEWEST,
        page=max(1, _whole(query.get("page")) or 1),
    )


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _number(text: str | None) -> float | None:
    """A number that the index can compare with."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < _LARGEST else None


def _said(value: object) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
