"""Lines of trajectories.jsonl, read back into the records they were written from.

Routing is not in the file. Keys that are not known are left alone.
"""

import json
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from envs.env import Task
from envs.message import Message, ToolCall
from rollout.engine import VersionSpan
from rollout.trajectory import Phase, ScoredTrajectory, Trajectory, Turn

R = TypeVar("R")


class NoRecord(ValueError):
    """A line that holds no trajectory; the message says what is missing."""


def read_trajectory(line: str | bytes) -> ScoredTrajectory:
    """The trajectory of one line. Raises NoRecord."""
    try:
        record = json.loads(line)
        trajectory = _record(
            Trajectory,
            record,
            task=_record(Task, record["task"]),
            env_rewards=dict(record["evidence"]),
            opening=tuple(map(_message, record["opening"])),
            turns=tuple(map(_turn, record["turns"])),
            phases=tuple(_record(Phase, one) for one in record["phases"]),
        )
        return ScoredTrajectory(trajectory, dict(record["rewards"]), float(record["reward"]))
    except KeyError as error:
        raise NoRecord(f"it has no {error.args[0]!r}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise NoRecord(str(error)) from None


def _turn(record: dict[str, Any]) -> Turn:
    return _record(
        Turn,
        {name: value for name, value in record.items() if name != "routing"},
        prompt_ids=tuple(record["prompt_ids"]),
        completion_ids=tuple(record["completion_ids"]),
        rollout_logprobs=tuple(record["rollout_logprobs"]),
        versions=tuple(_record(VersionSpan, one) for one in record["versions"]),
        calls=tuple(_record(ToolCall, one) for one in record["calls"]),
        observations=tuple(map(_message, record["observations"])),
    )


def _message(record: dict[str, Any]) -> Message:
    calls = tuple(_record(ToolCall, one) for one in record.get("tool_calls", ()))
    return _record(Message, record, tool_calls=calls)


def _record(kind: type[R], record: dict[str, Any], **changed: Any) -> R:
    """A dataclass from its fields in a JSON object; `changed` are those that JSON has no type for."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name in changed:
            values[field.name] = changed[field.name]
        elif field.name in record:
            values[field.name] = record[field.name]
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(field.name)
    return kind(**values)
