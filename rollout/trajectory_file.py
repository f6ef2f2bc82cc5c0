"""Lines of trajectories.jsonl, read back into the records they were written from.

Routing is not in the file. Keys that are not known are left alone; fields that a line of an older release
does not have get their defaults.
"""

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rollout.trajectory import Judgement, ScoredTrajectory, Trajectory


class NoRecord(ValueError):
    """A line that holds no trajectory; the message says what is missing."""


def read_trajectory(line: str | bytes) -> ScoredTrajectory:
    """Read the trajectory of one line. Raises NoRecord."""
    try:
        record = json.loads(line)
        # The file's key is older than the field's name.
        record["env_rewards"] = record.pop("evidence")
        rewards, reward = dict(record["rewards"]), float(record["reward"])
        turn_rewards = tuple(map(float, record.get("turn_rewards", ())))
        judgements = _judgements().validate_python(record.get("judgements", ()))
        trajectory = _reader().validate_python(record)
        return ScoredTrajectory(trajectory, rewards, reward, turn_rewards, judgements)
    except KeyError as error:
        raise NoRecord(f"it has no {error.args[0]!r}") from None
    except ValidationError as error:
        raise NoRecord(_sentence(error)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise NoRecord(str(error)) from None


@cache
def _reader() -> TypeAdapter[Trajectory]:
    reader = TypeAdapter(Trajectory)
    # Known to type checkers only: numpy is heavy, and the file has no routing.
    reader.rebuild(_types_namespace={"Routing": Any})
    return reader


@cache
def _judgements() -> TypeAdapter[tuple[Judgement, ...]]:
    return TypeAdapter(tuple[Judgement, ...])


def _sentence(error: ValidationError) -> str:
    """Say what is wrong with the first field that is."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"it has no {where!r}"
    return f"{where}: {first['msg']}"
