"""`Sandbox`: runs a program that nobody vouches for, at a level of isolation that is known and named.

    box = Sandbox(limits=Limits(wall_seconds=2))
    result = await box.python("print(6 * 7)")        # Result("ok", "42\\n", ...), level "bubblewrap"

Flows in: a program, its files, its standard input. Flows out: a `Result`, whatever the program does.
Refuses: to run at a weaker level than asked for; level "none" has to be asked for by name. Leaves out:
programs that go on from one run to the next, and networks that are allowed in part.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator

from envs.sandbox.confinement import Work, python_at, run_confined
from envs.sandbox.level import ISOLATING, LACKS, LevelName
from envs.sandbox.limits import Limits
from envs.sandbox.probe import obstacle
from envs.sandbox.result import Result


def _known(level: object) -> object:
    """Pass a level on. Raises ValueError for the one that there was once."""
    if level == "namespaces":
        raise ValueError(
            "the sandbox level 'namespaces' no longer exists: use 'bubblewrap', which works wherever it "
            "worked, or 'auto'"
        )
    return level


Wanted = Literal["auto", "bubblewrap", "landlock", "none"]
Choice = Annotated[Wanted, BeforeValidator(_known)]  # for an environment's settings
log = logging.getLogger(__name__)
_warned: set[str] = set()


class SandboxUnavailable(Exception):
    """This machine cannot isolate as asked: for each level that was tried, why."""


class Sandbox:
    """Runs programs, each in a world of its own.

    level: "auto" takes the strongest that works here; a name takes that level or fails. readable: paths
    of the host that programs may read beside the system's own.
    """

    def __init__(
        self,
        *,
        level: Wanted = "auto",
        limits: Limits | None = None,
        readable: Sequence[str] = (),
    ) -> None:
        _known(level)
        self.choice: Wanted = level
        self.limits = limits or Limits()
        self.readable = tuple(readable)

    async def level(self) -> LevelName:
        """The level in use, found out once in a process. Raises SandboxUnavailable."""
        reasons: list[str] = []
        levels: tuple[LevelName, ...] = ISOLATING if self.choice == "auto" else (self.choice,)
        for level in levels:
            reason = await obstacle(level)
            if not reason:
                _warn(level, reasons)
                return level
            reasons.append(f"{level}: {reason}")
        raise SandboxUnavailable(
            f"no sandbox of level {self.choice!r} on this machine ({'; '.join(reasons)})"
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | bytes = b"",
        keep: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Result:
        """Run a program in a directory that holds `files`; hand out those named in `keep` afterwards.

        Raises SandboxUnavailable, and ValueError for names of files that leave the directory.
        """
        level = await self.level()
        contents = {name: _bytes(text) for name, text in (files or {}).items()}
        limits = limits or self.limits
        work = Work(tuple(argv), contents, _bytes(stdin), tuple(keep), limits, self.readable)
        return await run_confined(level, work)

    async def python(
        self,
        source: str,
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | bytes = b"",
        keep: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Result:
        """Run Python source, with the standard library and modules among `files`. Raises as `run` does."""
        argv = (python_at(await self.level()), "-s", "-S", "-B", "main.py")
        files = {**(files or {}), "main.py": source}
        return await self.run(argv, files=files, stdin=stdin, keep=keep, limits=limits)


def _bytes(text: str | bytes) -> bytes:
    # A lone surrogate is valid in JSON, and so in what a policy writes.
    return text.encode(errors="surrogatepass") if isinstance(text, str) else text


def _warn(level: LevelName, reasons: list[str]) -> None:
    """Say once in a process that the level is weaker than the first, and what that means."""
    if level in _warned or not (reasons or level == "none"):
        return
    _warned.add(level)
    weaker = f"; {LACKS[level]}" if LACKS[level] else ""
    why = f" ({'; '.join(reasons)})" if reasons else ""
    log.warning("sandbox level %s%s%s", level, why, weaker)
