"""A probe: one object in a process of its own, asked act by act, that ends with whoever started it.

In: how to make the object there, and calls of its methods. Out: their results, in order. The process and all
that it has started are killed when the probe is closed; where who started it is gone, it ends by itself.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import psutil

from rl.nodes.process import first_line, log_to

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class ProbeError(Exception):
    """Something cannot be measured; the message is one sentence."""


class Probe(Generic[T]):
    """A `T` in a process of its own, as a context that ends the process."""

    def __init__(self, name: str, folder: Path, make: Callable[[], T]) -> None:
        """name: how sentences call it. folder: for its log. make: called there, so it has to be pickled."""
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        spawn = get_context("spawn")
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(other, make, str(self.log)))
        self.process.start()
        other.close()

    def begin(
        self, act: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[float], R]:
        """Ask for an act. Returns what waits for its result, for so many seconds, and raises ProbeError."""
        with suppress(OSError):  # a process that is gone is found when its answer is read
            self.pipe.send((act, args, kwargs))
        return self._answer

    def ask(
        self, seconds: float, act: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """The result of an act. Raises ProbeError where there is none within `seconds`."""
        return self.begin(act, *args, **kwargs)(seconds)

    def _answer(self, seconds: float) -> Any:
        try:
            if not self.pipe.poll(seconds):
                raise ProbeError(f"{self.name}: no answer within {seconds:g} s")
            done, result = self.pipe.recv()
        except (EOFError, OSError):
            raise ProbeError(f"{self.name}: its process has ended{self._last_line()}") from None
        if not done:
            raise ProbeError(f"{self.name}: {result}")
        return result

    def _last_line(self) -> str:
        with suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            return f": {said[-1][:200]}" if said else ""
        return ""

    def close(self) -> None:
        """Kill the process, and all that it has started."""
        with suppress(psutil.NoSuchProcess):
            _kill(psutil.Process(self.process.pid))
        self.process.join()
        self.pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _kill(process: psutil.Process) -> None:
    """Kill a process and its descendants, the descendants first."""
    for one in (*process.children(recursive=True), process):
        with suppress(psutil.NoSuchProcess):
            one.kill()


def _serve(pipe: Connection, make: Callable[[], object], log: str) -> None:
    """Make the object at the first act, and do act after act until the pipe is closed."""
    log_to(log)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(asked, signal.SIG_IGN)  # who started it ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    made: object = None
    while True:
        act, args, kwargs = pipe.recv()
        try:
            made = make() if made is None else made
            answer = True, act(made, *args, **kwargs)
        except Exception as error:
            traceback.print_exc()
            answer = False, first_line(error)
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a probe is started by another process"
    wait([parent.sentinel])
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    os._exit(1)
