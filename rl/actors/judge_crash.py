"""Names the judge that has ended a controller's process below Python, say by a segmentation fault.

In: the controller's log, in which the interpreter's last words are its stack (`faulthandler`). Out: a part
of a sentence. Left out: a process that was killed from outside has no last words.
"""

import faulthandler
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.entry_point import TwoRegister, entry_point
from reward.registry import GROUP
from rl.env_table import EnvTable

_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_CURRENT = re.compile(r"^(?:Current thread|Stack) .*\n((?: +File .*\n?)+)", re.MULTILINE)
_FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')
# Last words are short.
_READ = 2**16


@dataclass(frozen=True)
class _Frame:
    file: str
    line: str
    function: str

    def runs(self, place: str) -> bool:
        """True if it is of the function at `module:function`, or of that module where it is an object."""
        module, _, function = place.partition(":")
        path = module.replace(".", "/")
        tails = (f"{path}.py", f"{path}/__init__.py")
        mine = f"/{self.file}".endswith(tuple(f"/{tail}" for tail in tails))
        return mine and self.function in (function, "__call__")


def last_words_to_log() -> None:
    """Have the interpreter write its stack to this process's standard error where a fatal error ends it."""
    faulthandler.enable(all_threads=False)


class JudgeCrashes:
    """The fatal errors in controllers' logs, each told once."""

    def __init__(self, logs: Path, tables: Sequence[EnvTable]) -> None:
        """logs: the folder with a log for each controller. tables: of the run, whose judges are at work."""
        self.logs = logs
        self.judges = [judge for table in tables for judge in table.judges]
        self.read: dict[str, int] = {}

    def why(self, controller: str) -> str:
        """How a controller that has just died came to its end; "" where its log does not say."""
        log = self.logs / f"{controller}.log"
        try:
            size = log.stat().st_size
            with log.open("rb") as file:
                file.seek(max(self.read.get(controller, 0), size - _READ))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        self.read[controller] = size
        return crash_in(text, self.judges)


def crash_in(text: str, judges: Sequence[str]) -> str:
    """The last fatal error in a log, with the judge that was at work; "" where there is none."""
    fatal = [*_FATAL.finditer(text)]
    if not fatal:
        return ""
    what = fatal[-1].group(1).strip().lower()
    stack = _CURRENT.search(text, fatal[-1].end())
    frames = [_Frame(*found) for found in _FRAME.findall(stack.group(1))] if stack else []
    if not frames:
        return f"a {what}"
    for judge, place in _places(judges):
        if found := next((frame for frame in frames if frame.runs(place)), None):
            return f"a {what} in judge {judge!r} ({found.file}, line {found.line})"
    return f"a {what} in {frames[0].function} ({frames[0].file}, line {frames[0].line})"


def _places(judges: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where each judge is, as `module:function`; nothing is imported."""
    for judge in judges:
        try:
            point = None if ":" in judge else entry_point(GROUP, judge)
        except TwoRegister:
            continue
        yield judge, point.value if point is not None else judge
