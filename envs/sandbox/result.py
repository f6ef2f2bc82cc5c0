"""How a run in the sandbox ended."""

from dataclasses import dataclass, field
from typing import Literal

from envs.sandbox.level import LevelName

Status = Literal[
    "ok",  # it ended with code 0
    "error",  # it ended with another code
    "timeout",  # its seconds were used up, of the clock or of the processor
    "memory",  # it wanted more memory than it may have
    "output",  # it wrote more than it may
    "killed",  # a signal ended it, or another limit was passed
    "infra",  # the sandbox itself failed: says nothing about the program
]


@dataclass(frozen=True)
class Result:
    """One run. Output is text, with what is not UTF-8 replaced, and no longer than its limit.

    returncode: as a shell gives it, 128 + the number of the signal where one ended the program; -1 where
    the sandbox was ended from outside or never started. detail: the status in a sentence. files: what was
    asked for with `keep`, as the program left it: its own word, like its output.
    """

    status: Status
    stdout: str
    stderr: str
    returncode: int
    seconds: float
    level: LevelName
    detail: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
