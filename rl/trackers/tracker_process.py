"""The process of one tracker, as the run sees it: started, looked at, and ended by a deadline.

Nothing of a tracker can end or stop the run: the process reads the run folder (`rl.trackers.process`), and
the run never waits for it before its own end. One that was killed is started again, once. Whatever goes wrong
beyond that is one warning.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from rl.trackers.tracker import AT, SAYS, STATES, Order, Position

# A process that has shown no sign of life for so many seconds hangs.
HANGS_SECONDS = 300.0
# W&B's words, in its log, for a server that refuses what it is sent; it goes on without uploading then.
REFUSED = b"Fatal error while uploading"
TITLES = {
    "wandb": "W&B",
    "tensorboard": "TensorBoard",
    "trackio": "Trackio",
    "mlflow": "MLflow",
    "prometheus": "Prometheus",
    "otel": "OpenTelemetry",
    "notify": "notifications",
}


class TrackerProcess:
    """One tracker at work for one run."""

    def __init__(self, order: Order, say: Callable[[str], None]) -> None:
        """Start it. say: hears the one warning, if there is one."""
        self.order = order
        self.say = say
        self.process: subprocess.Popen[bytes] | None = None
        self._log = Path(order.folder) / "logs" / f"{order.tracker}.log"
        # Bytes of the log that have been heard.
        self._heard = self._log.stat().st_size if self._log.exists() else 0
        self._warned = False
        # How far it has come, and whether it may be started again.
        self.position: Position | None = None
        self._may_start_again = True
        self._spawn(order)

    def look(self) -> None:
        """Hear whether it still follows."""
        process = self.process
        if process is None:
            return
        ended = process.poll() is not None
        heard = self._hear()
        if not ended:
            self._end_if_it_hangs(process, heard=heard)
            return
        killed = process.returncode != 0
        self._gone()
        if (offline := self._offline()) is None:
            if killed and self._may_start_again:
                self._start_again()
                return
            again = "" if self._may_start_again else " again"
            self._warn(f"its process has ended{again}; it gets nothing more")
            return
        self._warn("its process was ended; it goes on offline, and `wandb sync` sends that")
        self.order = offline
        self._spawn(offline)

    def _start_again(self) -> None:
        """Start another process, which goes on where the one before has come to."""
        self._may_start_again = False
        self.order = replace(self.order, resumed=True)
        if self.position is not None and self.order.tracker not in STATES:
            self.order = replace(self.order, **asdict(self.position))
        self.say(
            f"{TITLES[self.order.tracker]}: its process has ended, and is started again (log: {self._log})"
        )
        self._spawn(self.order)

    def end_input(self) -> None:
        """Tell it that the run has ended."""
        self.look()
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def close(self, seconds: float) -> None:
        """Let it take the rest, for so long; what W&B does not take it gets offline, in as long again."""
        if self.process is None or self._finish(self.process, seconds):
            return
        within = f"it did not take everything within {seconds:g} s"
        if (offline := self._offline()) is None:
            self._warn(f"{within}, and was ended")
            return
        # What W&B has in memory only goes with its processes.
        self._warn(f"{within}; it goes on offline, and `wandb sync` sends that")
        self._spawn(offline)
        if self.process is not None:
            self.end_input()
            self._finish(self.process, seconds)

    def _offline(self) -> Order | None:
        """The order for W&B to go on offline; None where it has no such way, or takes it already."""
        if self.order.tracker != "wandb" or self.order.offline:
            return None
        return replace(self.order, offline=True)

    def _end_if_it_hangs(self, process: subprocess.Popen[bytes], *, heard: bool) -> None:
        try:
            still = time.time() - self._log.stat().st_mtime
        except OSError:  # somebody has removed it
            return
        # One that has much to say waits until it is heard.
        if still < HANGS_SECONDS or heard:
            return
        self._warn(f"its process has not moved for {still:.0f} s, and is ended")
        self._may_start_again = False
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _finish(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Have the process end. Returns False where it did not by itself, and was ended."""
        done = True
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            done = False
        self._hear()
        if process.returncode:
            self._warn("its process was ended before it had everything")
        self._gone()
        return done

    def _gone(self) -> None:
        """Take leave of the process, and of its helpers, which are in the same session."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _refused(self) -> bool:
        """True if W&B's log has said since the last look that the server refuses the run."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._heard)
                new = log.read()
        except OSError:  # somebody has removed it
            return False
        self._heard += new.rfind(b"\n") + 1
        return REFUSED in new

    def _spawn(self, order: Order) -> None:
        try:
            with self._log.open("ab") as errors:
                os.utime(errors.fileno())
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "rl.trackers.process", json.dumps(asdict(order))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, "WANDB_SILENT": "false"},
                    # A signal to the run is not for it: it ends when its input does.
                    start_new_session=True,
                )
        except OSError as error:
            self._warn(f"its process did not start: {error}")
            return
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def _hear(self) -> bool:
        """Take what the process has said. Returns True if it has said anything."""
        if self.process is None or self.process.stdout is None:
            return False
        said = self.process.stdout.read() or b""
        for line in said.decode(errors="replace").splitlines():
            if line.startswith(SAYS):
                self._warn(line.removeprefix(SAYS))
            elif line.startswith(AT):
                # A package of the tracker's may write to the same stream.
                with suppress(ValueError, TypeError):
                    self.position = Position(**json.loads(line.removeprefix(AT)))
        if self.order.tracker == "wandb" and self._refused():
            # Of a run that was online `wandb sync` alone sends nothing.
            runs = f"{self.order.folder}/wandb/run-*"
            self._warn(
                "its server refuses what it is sent, and gets nothing more; "
                f"`wandb sync --no-skip-online {runs}` sends what is missing"
            )
        return bool(said)

    def _warn(self, sentence: str) -> None:
        """Say the first thing that goes wrong; what follows from it is in the log."""
        if self._warned:
            return
        self._warned = True
        kept = ""
        if self.order.tracker not in ("wandb", "notify"):
            kept = f"; {self.order.folder}/metrics.jsonl has every step"
        self.say(f"{TITLES[self.order.tracker]}: {sentence}{kept} (log: {self._log})")
