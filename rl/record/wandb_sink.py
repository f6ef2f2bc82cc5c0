"""Weights & Biases beside the run folder: online with a key, else offline in the folder (`wandb sync`).

It reads metrics.jsonl in a process of its own (`rl.record.wandb_process`), so that nothing of it can end or
stop the run: whatever goes wrong there is one warning. The run's id lies in wandb.id, so that a run that goes
on is the same one there too. What W&B has of steps that are undone it keeps: it takes a step once.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace

from rl.config import WandbConfig
from rl.record.run_folder import RunFolder
from rl.record.wandb_process import Order

# For W&B to take what it has not taken by the end of the run.
CLOSE_SECONDS = 30.0
# W&B's words, in its log, for a server that refuses what it is sent; it goes on without uploading then.
REFUSED = b"Fatal error while uploading"


def _unheard(sentence: str) -> None:
    """For who wants no warning."""


class WandbSink:
    """One W&B run; a sink that does nothing where it is switched off."""

    def __init__(
        self, config: WandbConfig, folder: RunFolder, say: Callable[[str], None] = _unheard
    ) -> None:
        """say: hears the one warning, if there is one."""
        self.config = config
        self.folder = folder
        self.say = say
        self.enabled = config.enabled and os.environ.get("WANDB_MODE") != "disabled"
        self._process: subprocess.Popen[bytes] | None = None
        self._order: Order | None = None
        self._log = folder.path / "logs" / "wandb.log"
        # Bytes of the log that have been heard.
        self._heard = self._log.stat().st_size if self._log.exists() else 0
        self._warned = False

    def start(self) -> None:
        """Have the lines of metrics.jsonl followed from where this part of the run begins."""
        if not self.enabled or self._order is not None:
            return
        known = self.folder.path / "wandb.id"
        resumes = known.exists()
        id = known.read_text(encoding="utf-8").strip() if resumes else uuid.uuid4().hex[:8]
        known.write_text(f"{id}\n", encoding="utf-8")
        self._order = Order(
            folder=str(self.folder.path.resolve()),
            begins=self.folder.begins,
            id=id,
            resumes=resumes,
            name=self.folder.config.name,
            project=self.config.project,
            entity=self.config.entity,
            config=self.folder.config.model_dump(mode="json"),
        )
        self._spawn(self._order)

    def look(self) -> None:
        """There is a new line; hear whether W&B still follows."""
        self.start()
        self._hear()
        process, order = self._process, self._order
        if order is None or process is None or process.poll() is None:
            return
        self._process = None
        self._warn("its process was ended; it goes on offline, and `wandb sync` sends that")
        if not order.offline:
            self._order = replace(order, offline=True)
            self._spawn(self._order)

    def close(self) -> None:
        """Let W&B take the rest, for a while; what it does not take it gets offline."""
        order = self._order
        if self._process is None or order is None or self._finish(self._process):
            return
        # What W&B has in memory only goes with its processes.
        self._warn(
            f"it did not take everything within {CLOSE_SECONDS:g} s; it goes on offline, and `wandb sync` "
            "sends that"
        )
        if not order.offline:
            self._spawn(replace(order, offline=True))
            if self._process is not None:
                self._finish(self._process)

    def _finish(self, process: subprocess.Popen[bytes]) -> bool:
        """Have W&B's process end. Returns False where it did not by itself, and was ended."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):
            process.stdin.close()
        done = True
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            done = False
        self._hear()
        if process.returncode:
            self._warn("its process was ended before it had everything")
        # Its helper too, which is in the same session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        self._process = None
        return done

    def _refused(self) -> bool:
        """True if W&B's log has said since the last look that the server refuses the run."""
        with self._log.open("rb") as log:
            log.seek(self._heard)
            new = log.read()
        self._heard += new.rfind(b"\n") + 1
        return REFUSED in new

    def _spawn(self, order: Order) -> None:
        try:
            with self._log.open("ab") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rl.record.wandb_process", json.dumps(asdict(order))],
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
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _hear(self) -> None:
        """Take what the process has said."""
        if self._process is None or self._process.stdout is None:
            return
        said = self._process.stdout.read() or b""
        for line in said.decode(errors="replace").splitlines():
            if line.startswith("W&B: "):
                self._warn(line.removeprefix("W&B: "))
        if self._refused():
            # Of a run that was online `wandb sync` alone sends nothing.
            runs = f"{self.folder.path}/wandb/run-*"
            self._warn(
                "its server refuses what it is sent, and gets nothing more; "
                f"`wandb sync --no-skip-online {runs}` sends what is missing"
            )

    def _warn(self, sentence: str) -> None:
        """Say the first thing that goes wrong; what follows from it is in logs/wandb.log."""
        if not self._warned:
            self._warned = True
            self.say(f"W&B: {sentence} (log: {self._log})")
