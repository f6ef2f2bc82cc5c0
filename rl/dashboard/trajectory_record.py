"""One line of trajectories/*.jsonl as a page shows it: read at its byte offset, checked once, frozen.

In: where the index says a record lies; the file may be gone, cut off, half written, broken or hostile. Out:
a record whose every field is of the type that it says, with a sentence for what was not as it should be. Left
out on purpose: `rollout.trajectory_file`, which refuses a record for its first mistake; a page shows what is
there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rl.dashboard.growing_lines import MAX_LINE, Object, parse
from rl.dashboard.series import number
from rl.dashboard.trajectory_index import Hit

# Beyond it a record says the same thing again and again.
_MAX_PROBLEMS = 12


class Unreadable(Exception):
    """A record that cannot be shown; the message is one sentence."""


@dataclass(frozen=True)
class Call:
    """A tool call as the policy wrote it. arguments: (name, value as JSON or as text)."""

    name: str
    arguments: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Said:
    """A message: who speaks, and what. name: the tool of a tool's message, who wrote a simulated user's."""

    role: str
    name: str
    text: str
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class TurnView:
    """One turn. logprobs, versions: one per completion id, None where the record has none.

    thought: the reasoning apart from the text; "" in records that did not keep it apart. rewards:
    what the turn has earned, by name. begins: why a segment begins with it, "" where none does. summary: it
    was asked for, and the environment did not see it. segment: the index of its token sequence.
    """

    number: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    versions: tuple[int | None, ...]
    finish_reason: str
    engine: str
    text: str
    calls: tuple[Call, ...]
    malformed: bool
    bad_calls: int
    observations: tuple[Said, ...]
    thought: str = ""
    rewards: tuple[tuple[str, float], ...] = ()
    begins: str = ""
    summary: bool = False
    segment: int = 0


@dataclass(frozen=True)
class BranchView:
    """A segment that began where a client rewrote history. parent: the one that it has most in common with.
    message: the index of the first other message, its role and beginning; -1 where the tools are others."""

    segment: int
    parent: int
    message: int
    role: str
    text: str


@dataclass(frozen=True)
class PhaseView:
    """A stretch of the episode's time, in seconds. start: unix seconds; 0 where the record has none."""

    name: str
    seconds: float
    start: float = 0.0


@dataclass(frozen=True)
class TrajectoryView:
    """A trajectory. task: its data as JSON; rewards: by name; problems: what is odd, in sentences; log: what
    an agent wrote of itself."""

    id: str
    group: str
    env: str
    task_id: str
    noise: int
    task: str
    opening: tuple[Said, ...]
    turns: tuple[TurnView, ...]
    stop_reason: str
    reward: float | None
    rewards: tuple[tuple[str, float], ...]
    phases: tuple[PhaseView, ...]
    fault: str
    trace: str
    notes: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    branches: tuple[BranchView, ...] = ()
    log: str = ""

    @property
    def num_segments(self) -> int:
        """Token sequences that it consists of."""
        return len({turn.segment for turn in self.turns})

    @property
    def num_policy_tokens(self) -> int:
        """Tokens that the policy wrote, all turns together."""
        return sum(len(turn.completion_ids) for turn in self.turns)


def read_record(folder: Path, hit: Hit) -> TrajectoryView:
    """The record that the index points to. Raises Unreadable."""
    record = line_at(folder, hit.file, hit.offset)
    if record.get("id") != hit.id:
        raise Unreadable(
            f"{hit.file} holds another record at byte {hit.offset} than that of {hit.id!r}."
        )
    return as_view(record)


def line_at(folder: Path, file: str, offset: int | None) -> Object:
    """The JSON object that begins there, in a file of the folder's trajectories. Raises Unreadable."""
    line = bytes_at(folder, file, offset, MAX_LINE + 1)
    if not line:
        raise Unreadable(f"{file} ends before byte {offset}, where the index says the record is.")
    if not line.endswith(b"\n"):
        size = "longer than can be shown" if len(line) > MAX_LINE else "only half written"
        raise Unreadable(f"The record in {file} at byte {offset} is {size}.")
    record = parse(line)
    if record is None:
        raise Unreadable(f"The line in {file} at byte {offset} is no JSON object.")
    return record


def bytes_at(folder: Path, file: str, offset: int | None, most: int) -> bytes:
    """At most so many bytes of the line that begins there. Raises Unreadable."""
    kind, _, name = file.partition("/")
    if kind != "trajectories" or not name or "/" in name or "\0" in name or name == "..":
        raise Unreadable(
            f"The index names {file!r}, which is no file of the run's trajectories folder."
        )
    if offset is None or not 0 <= offset < 2**63:
        raise Unreadable(f"The index does not say where in {file} the record begins.")
    try:
        path = (folder / kind / name).resolve()
        if path.parent != (folder / kind).resolve() or not path.is_file():
            raise Unreadable(f"{file} is not there; the index still names it.")
        with path.open("rb") as lines:
            lines.seek(offset)
            return lines.readline(most)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise Unreadable(f"{file} cannot be read: {type(error).__name__}.") from None


class _Checked:
    """Reads fields of a type, and notes those that are of another."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def odd(self, what: str) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(what)

    def text(self, record: Object, key: str, where: str = "the record") -> str:
        value = record.get(key)
        if isinstance(value, str):
            return value
        self.odd(f"{where}: {key} is no text" if key in record else f"{where}: no {key}")
        return "" if value is None else _json(value)

    def items(self, record: Object, key: str, where: str = "the record") -> list[object]:
        value = record.get(key)
        if isinstance(value, list):
            return value
        self.odd(f"{where}: {key} is no list" if key in record else f"{where}: no {key}")
        return []

    def objects(self, record: Object, key: str, where: str = "the record") -> Iterable[Object]:
        for one in self.items(record, key, where):
            if isinstance(one, dict):
                yield one
            else:
                self.odd(f"{where}: an item of {key} is no object")

    def ids(self, record: Object, key: str, where: str) -> tuple[int, ...]:
        ids = [_index(value) for value in self.items(record, key, where)]
        whole = tuple(id for id in ids if id is not None)
        if len(whole) == len(ids):
            return whole
        self.odd(f"{where}: {key} are no token ids")
        return ()


def as_view(record: Object) -> TrajectoryView:
    """A JSON object as a trajectory; never raises."""
    check = _Checked()
    task = record.get("task")
    if not isinstance(task, dict):
        check.odd("the record: no task")
        task = {}
    rewards = record.get("rewards")
    return TrajectoryView(
        id=check.text(record, "id"),
        group=check.text(record, "group"),
        env=check.text(record, "env"),
        task_id=check.text(task, "id", "task"),
        noise=_whole(task.get("noise")),
        task=_json(task.get("data")),
        opening=tuple(_said(check, one, "opening") for one in check.objects(record, "opening")),
        turns=tuple(
            _turn(check, n, one) for n, one in enumerate(check.objects(record, "turns"), 1)
        ),
        stop_reason=check.text(record, "stop_reason"),
        reward=number(record.get("reward")),
        rewards=_numbers(rewards if isinstance(rewards, dict) else {}),
        phases=tuple(_phases(check, record)),
        fault=check.text(record, "fault"),
        trace=check.text(record, "trace"),
        notes=_notes(record.get("notes")),
        branches=tuple(_branches(check, record)),
        log=check.text(record, "log") if "log" in record else "",
        problems=tuple(check.problems),
    )


def _turn(check: _Checked, n: int, record: Object) -> TurnView:
    where = f"turn {n}"
    completion = check.ids(record, "completion_ids", where)
    logprobs = tuple(number(one) for one in check.items(record, "rollout_logprobs", where))
    if len(logprobs) != len(completion):
        check.odd(f"{where}: {len(logprobs)} log-probs for {len(completion)} tokens")
        logprobs = (None,) * len(completion)
    rewards = record.get("rewards")
    return TurnView(
        number=n,
        prompt_ids=check.ids(record, "prompt_ids", where),
        completion_ids=completion,
        logprobs=logprobs,
        versions=_versions(check, record, where, len(completion)),
        finish_reason=check.text(record, "finish_reason", where),
        engine=check.text(record, "engine", where),
        text=check.text(record, "text", where),
        calls=tuple(_call(check, one, where) for one in check.objects(record, "calls", where)),
        malformed=record.get("malformed") is True,
        bad_calls=_whole(record.get("bad_calls")),
        observations=tuple(
            _said(check, one, where) for one in check.objects(record, "observations", where)
        ),
        thought=check.text(record, "thought", where) if "thought" in record else "",
        rewards=_numbers(rewards if isinstance(rewards, dict) else {}),
        begins=check.text(record, "begins", where) if "begins" in record else "",
        summary=record.get("summary") is True,
        segment=_whole(record.get("segment")),
    )


def _versions(check: _Checked, record: Object, where: str, tokens: int) -> tuple[int | None, ...]:
    """The version of each token, from spans [start, end)."""
    versions: list[int | None] = [None] * tokens
    for span in check.objects(record, "versions", where):
        start, end, version = (_index(span.get(key)) for key in ("start", "end", "version"))
        if start is None or end is None or version is None or not start <= end <= tokens:
            check.odd(f"{where}: a span of versions that is none")
            continue
        versions[start:end] = [version] * (end - start)
    return tuple(versions)


def _said(check: _Checked, record: Object, where: str) -> Said:
    name = record.get("name") or record.get("by")
    return Said(
        role=check.text(record, "role", where),
        name=name if isinstance(name, str) else "",
        text=check.text(record, "content", where),
        calls=tuple(_call(check, one, where) for one in check.objects(record, "tool_calls", where)),
    )


def _call(check: _Checked, record: Object, where: str) -> Call:
    arguments = record.get("arguments")
    if not isinstance(arguments, dict):
        check.odd(f"{where}: a call without arguments")
        arguments = {}
    shown = tuple((k, v if isinstance(v, str) else _json(v)) for k, v in arguments.items())
    return Call(check.text(record, "name", where), shown)


def _branches(check: _Checked, record: Object) -> Iterable[BranchView]:
    for one in check.objects(record, "branches") if "branches" in record else ():
        message = _index(one.get("message"))
        yield BranchView(
            _whole(one.get("segment")),
            _whole(one.get("parent")),
            -1 if message is None else message,
            check.text(one, "role", "a branch"),
            check.text(one, "text", "a branch"),
        )


def _phases(check: _Checked, record: Object) -> Iterable[PhaseView]:
    for one in check.objects(record, "phases"):
        seconds = number(one.get("seconds"))
        if seconds is None or seconds < 0:
            check.odd("the record: a phase without its seconds")
        else:
            yield PhaseView(
                check.text(one, "name", "a phase"), seconds, number(one.get("start")) or 0.0
            )


def _numbers(values: Object) -> tuple[tuple[str, float], ...]:
    found = ((name, number(value)) for name, value in values.items())
    return tuple((name, value) for name, value in found if value is not None)


def _notes(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        return ()
    return tuple((k, v if isinstance(v, str) else _json(v)) for k, v in value.items())


def _index(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None


def _whole(value: object) -> int:
    return _index(value) or 0


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply to be shown"
