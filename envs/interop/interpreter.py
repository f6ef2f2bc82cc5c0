"""A child interpreter: a foreign package at work in a Python of its own, asked by JSON lines.

In: requests (method, arguments), from any thread or event loop. Out: the answers, one at a time, in order.
The child runs `lines_server.py` with a script of ours that imports the foreign package. It is started by the
first request, started anew by the next one after it died, and ends with this process, since its input ends.

Refuses: to take a child that died, hangs or writes garbage for anything but infrastructure (HostFault). What
the foreign code itself raised is ForeignError, which makes it the environment's fault.
"""

import asyncio
import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from envs.message import JsonObject
from envs.session import HostFault

HERE = Path(__file__).parent
# Importing a large package on a busy machine; no request is counted in it.
START_SECONDS = 300.0
LONGEST_LINE = 64 * 2**20
# For what a child that has died said last; what it started may hold its output open.
LAST_WORDS_SECONDS = 2.0


class ForeignError(ValueError):
    """The foreign code refused a request or failed at it, in one sentence."""


class ChildInterpreter:
    """One child of one interpreter; see `child_interpreter` for the one that all episodes share."""

    def __init__(self, python: str, script: Path, seconds: float) -> None:
        self.python = python
        self.script = script
        self.seconds = seconds
        self.where = f"{python}, which runs {script.stem}"
        self.process: subprocess.Popen[bytes] | None = None
        self.said: deque[str] = deque(maxlen=5)
        self.jobs: queue.SimpleQueue[tuple[bytes, Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name=f"dorado-{script.stem}").start()

    async def ask(self, method: str, **arguments: Any) -> Any:
        """The answer to a request; it has to come `seconds` after the child took it up.

        Raises ForeignError, and HostFault where the child is dead, too slow, or unintelligible.
        """
        return await asyncio.wrap_future(self._submit(method, arguments))

    def ask_now(self, method: str, **arguments: Any) -> Any:
        """`ask` for code that is not asynchronous, such as `Env.sample`."""
        return self._submit(method, arguments).result()

    @property
    def alive(self) -> bool:
        """True if the child runs; otherwise a request would start it."""
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """End the child; a later request starts a new one."""
        if self.process is not None and self.alive:
            _kill(self.process)

    def _submit(self, method: str, arguments: JsonObject) -> "Future[Any]":
        future: Future[Any] = Future()
        line = json.dumps({"method": method, "arguments": arguments}).encode() + b"\n"
        self.jobs.put((line, future))
        return future

    def _serve(self) -> None:
        """Consumes: jobs, in order. Produces: their futures' results. Waits for: a job, then the child, which
        a timer kills. Unblocked by: `_submit`; by the child's answer or end.
        """
        while (job := self.jobs.get()) is not None:
            line, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._answer(line))
            except Exception as error:  # raised in the thread or task that asked
                future.set_exception(error)

    def _answer(self, line: bytes) -> Any:
        if self.process is None or not self.alive:
            self.process = self._start()
            self._round(self.process, b"", START_SECONDS)
        return self._round(self.process, line, self.seconds)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [self.python, "-I", str(HERE / "lines_server.py"), str(self.script)]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise HostFault(f"{self.python} cannot be started: {error.strerror}") from None
        self.said.clear()
        self.hearing = threading.Thread(target=self._hear, args=(process,), daemon=True)
        self.hearing.start()
        return process

    def _hear(self, process: "subprocess.Popen[bytes]") -> None:
        """Pass on what the child says on stderr, and keep the last of it for the sentence of its death."""
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.said.append(text)
            print(f"{self.script.stem}: {text}", file=sys.stderr, flush=True)

    def _round(self, process: "subprocess.Popen[bytes]", line: bytes, seconds: float) -> Any:
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end_it() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(seconds, end_it)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline(LONGEST_LINE)
        except OSError:
            answer = b""
        finally:
            timer.cancel()
        if late.is_set():
            timer.join()  # until then the dead child would look alive
            raise HostFault(f"{self.where}, gave no answer within {seconds:g} s and was ended")
        try:
            read = json.loads(answer)
            result, error = read.get("result"), read.get("error", "")
        except (ValueError, AttributeError):
            raise HostFault(self._death(process, answer)) from None
        if error:
            raise ForeignError(error)
        return result

    def _death(self, process: "subprocess.Popen[bytes]", answer: bytes) -> str:
        if answer:
            _kill(process)
            return f"{self.where}, wrote what is no answer and was ended: {answer[:80]!r}"
        try:
            status = process.wait(2)
        except subprocess.TimeoutExpired:
            _kill(process)
            status = "none yet"
        self.hearing.join(LAST_WORDS_SECONDS)
        last = f": {self.said[-1]}" if self.said else ""
        return f"{self.where}, died (exit status {status}){last}"


_CHILDREN: dict[tuple[str, Path, float], ChildInterpreter] = {}
_LOCK = threading.Lock()


def child_interpreter(python: str, script: str, seconds: float) -> ChildInterpreter:
    """The child that all episodes of this process share; the script is a file of this folder."""
    key = (python, HERE / script, seconds)
    with _LOCK:
        if key not in _CHILDREN:
            _CHILDREN[key] = ChildInterpreter(*key)
        return _CHILDREN[key]


@atexit.register
def end_children() -> None:
    """End every shared child."""
    with _LOCK:
        for child in _CHILDREN.values():
            child.end()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the child and what it started: a grandchild could hold its output open."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
