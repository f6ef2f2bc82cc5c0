"""run.json: where a run stands beside its learner, in the folder of each checkpoint.

Consumes a `Position` of the task streams. Produces the text of run.json and reads it back, or a ConfigError.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rl.config_file import ConfigError
from rl.record.status import first_fault

POSITION = "run.json"
# Bumped when run.json changes; `read_position` refuses every other one.
SCHEMA = 1


@dataclass(frozen=True)
class ChoiceState:
    """Outcomes that a choice of tasks has seen, e.g. `ChoiceState("beta", 40, 7, [9.5, …], …)`.

    draws: choices so far. version: the newest policy version of an outcome. groups: sums over those drawn by
    chance. tasks: passes, fails and their version, per task. points: features of tasks that forecast "flgp"
    has drawn, and of `tasks`, in order, as base64 of float32; "" for other forecasts.
    """

    forecast: str
    draws: int
    version: int
    groups: list[float]
    tasks: dict[str, list[float]]
    points: str = ""
    played: str = ""


@dataclass(frozen=True)
class Position:
    """How far a run is in its tasks, as JSON has it, e.g. `Position({"calculator": {"0": 12}}, …)`.

    drawn: tasks per environment and difficulty. credit: of the mixture. levels: difficulty and noise.
    choices: of environments whose tasks are chosen by a forecast.
    """

    drawn: dict[str, dict[str, int]]
    credit: dict[str, float]
    levels: dict[str, list[int]]
    choices: dict[str, ChoiceState] = field(default_factory=dict[str, ChoiceState])


_GROUPS, _POSITION = TypeAdapter(int), TypeAdapter(Position)


def write_position(groups: int, position: Position) -> str:
    """Return the text of run.json. groups: how many have begun."""
    return json.dumps({"schema": SCHEMA, "groups": groups, **asdict(position)})


def read_position(checkpoint: Path) -> tuple[int, Position]:
    """Read the number of groups that had begun, and the position. Raises ConfigError."""
    file = checkpoint / POSITION
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if (schema := values.pop("schema")) != SCHEMA:
            raise ConfigError(f"--resume: {file} has schema {schema}; this release reads {SCHEMA}")
        groups = _GROUPS.validate_python(values.pop("groups"))
        return groups, _POSITION.validate_python(values)
    except FileNotFoundError:
        raise ConfigError(
            f"--resume: {checkpoint} has no {POSITION}: it was not written by a run that can go on"
        ) from None
    except ValidationError as error:
        raise ConfigError(f"--resume: {file} cannot be read: {first_fault(error)}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--resume: {file} cannot be read: {error!r}") from None
