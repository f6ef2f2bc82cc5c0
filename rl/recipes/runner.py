"""Runs a recipe: each stage as a process of its own, one after another, and what is done is not done again.

In: planned stages that have been checked. Out: their folders, their logs, and `recipe.json`, which says which
stages are begun or done. A signal is passed on to the stage in progress, which ends as it would alone; the
same command goes on from there: a training from its last checkpoint, anything else from its beginning. A
stage whose recipe has changed since is refused.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from rl.commands import INTERRUPTED, on_signals
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.loop.resume import evaluation_is_due
from rl.nodes.parent import ends_with_this_process
from rl.recipes.config import CommandStage, TrainStage
from rl.recipes.plan import Planned
from rl.record.run_folder import dump_toml
from rl.record.status import read_status
from trainer.checkpoint_folder import latest

STATE = "recipe.json"
# In place of a checkpoint: the training has made its last step.
WHOLE = "its end"
# How long a stage whose runner was killed may take to end, in seconds.
ENDS_WITHIN = 180.0
Say = Callable[[str], object]


class StageError(Exception):
    """A stage has failed, or was interrupted; the message is one sentence, `code` the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Runner:
    """Runs the stages of one recipe; one process at a time holds its folder."""

    def __init__(self, folder: Path, beside: Path, say: Say) -> None:
        """beside: the folder of the recipe, in which commands of one's own run."""
        self.folder, self.beside, self.say = folder, beside, say
        # How often somebody asked for the end, and how often the process has heard of it.
        self.asked = self.told = 0
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, stages: Sequence[Planned]) -> None:
        """Run what is not done yet. Raises ConfigError, StageError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._held():
            check_state(self.folder, stages)
            on_signals(self._pass_on)
            due = missing(read_state(self.folder), stages)
            for number, planned in enumerate(stages, 1):
                name = f"{number}/{len(stages)} {planned.stage.name} ({planned.stage.kind})"
                if planned.stage.name not in due:
                    self.say(f"{name}: done before, {planned.result}")
                    continue
                began = time.monotonic()
                how = self._run(planned, name)
                seconds = round(time.monotonic() - began, 1)
                self._note(planned, {"state": "done", "seconds": seconds})
                self.say(f"{name}: done in {seconds:g} s{how}, {planned.result}")

    @contextmanager
    def _held(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.folder}: this recipe is in progress") from None
            yield

    def _run(self, planned: Planned, name: str) -> str:
        """Run a stage to its end. Returns how it began, for the line that tells of it."""
        self._await_end(planned, name)
        resumed = self._prepare(planned)
        log = self.folder / f"{planned.stage.name}.log"
        self.say(f"{name}: {'goes on' if resumed else 'begins'}, {log}")
        code, dorado = 0, [sys.executable, "-m", "rl"]
        if isinstance(planned.stage, CommandStage):
            code = self._ended(planned, list(planned.command), log)
        elif resumed != WHOLE:
            more = ["--resume", str(planned.folder)] if resumed else []
            code = self._ended(planned, [*dorado, *planned.command, *more], log)
        if planned.export and not code and not Path(planned.result).exists():
            code = self._ended(planned, [*dorado, *planned.export], log)
        if self.asked:
            raise StageError(
                f"interrupted in stage {planned.stage.name!r}: the same command goes on from there",
                INTERRUPTED,
            )
        if code:
            raise StageError(
                f"stage {planned.stage.name!r} has failed, exit code {code}: {_last_line(log)} ({log})",
                1,
            )
        return f", resumed after {resumed}" if resumed else ""

    def _ended(self, planned: Planned, words: Sequence[str], log: Path) -> int:
        """Run the process; returns its exit code."""
        if self.asked:
            return INTERRUPTED
        cwd = self.beside if isinstance(planned.stage, CommandStage) else None
        with log.open("ab") as out:
            try:
                self.process = subprocess.Popen(
                    words,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=ends_with_this_process(code=INTERRUPTED),
                )
            except OSError as error:
                raise StageError(
                    f"stage {planned.stage.name!r}: {words[0]} cannot be started: {error.strerror}",
                    1,
                ) from None
        pid = self.process.pid
        with suppress(psutil.NoSuchProcess):
            self._note(
                planned,
                {"state": "begun", "pid": pid, "since": psutil.Process(pid).create_time()},
            )
        if self.asked > self.told:  # between the look above and the process
            self._signal(signal.SIGTERM)
        try:
            return self.process.wait()
        finally:
            self.process = None

    def _pass_on(self) -> None:
        """Ask the stage to end; the third time it is ended."""
        self.asked += 1
        if self.asked == 1:
            self.say("asked to end: the stage in progress ends first; a third time kills it")
        self._signal(signal.SIGTERM if self.asked < 3 else signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        process = self.process
        if process is None or process.poll() is not None:
            return
        self.told += 1
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    def _prepare(self, planned: Planned) -> str:
        """Write the stage's settings, and clear what is left of an earlier try.

        Returns the checkpoint from which a training goes on, WHOLE where it has ended already, else "".
        """
        stage, folder = planned.stage, planned.folder
        noted = read_state(self.folder).get(stage.name, {})
        self._note(planned, {"state": "begun"})
        if planned.settings is not None:
            file = self.folder / f"{stage.name}.toml"
            file.write_text(dump_toml(planned.settings), encoding="utf-8")
        if isinstance(stage, TrainStage):
            if planned.settings is None or noted.get("key") != planned.key:
                return ""
            return _how_far(folder, planned.settings)
        if folder.exists():
            if not noted:
                raise ConfigError(
                    f"stage {stage.name!r}: {folder} exists already, and this recipe did not make it"
                )
            shutil.rmtree(folder)
        return ""

    def _await_end(self, planned: Planned, name: str) -> None:
        """Wait for the process of a runner that was killed, which ends with it. Raises ConfigError."""
        noted = read_state(self.folder).get(planned.stage.name, {})
        pid, since = noted.get("pid"), noted.get("since")
        if not isinstance(pid, int):
            return
        try:
            process = psutil.Process(pid)
            if process.create_time() != since or process.status() == psutil.STATUS_ZOMBIE:
                return
            self.say(f"{name}: waiting for process {pid} of an earlier try to end")
            until = time.monotonic() + ENDS_WITHIN
            while process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > until:
                    raise ConfigError(
                        f"stage {planned.stage.name!r}: process {pid} of an earlier try has not ended "
                        f"within {ENDS_WITHIN:g} s: end it first"
                    )
                with suppress(psutil.TimeoutExpired):
                    process.wait(0.5)
                    return
        except psutil.NoSuchProcess:
            return

    def _note(self, planned: Planned, values: Mapping[str, object]) -> None:
        state = read_state(self.folder)
        state[planned.stage.name] = {"key": planned.key, "result": planned.result, **values}
        partial = self.folder / f"{STATE}.partial"
        partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
        partial.replace(self.folder / STATE)


def missing(state: Mapping[str, Mapping[str, object]], stages: Sequence[Planned]) -> set[str]:
    """Names of the stages that have to run: those that are not done, and of those whose result somebody has
    removed the ones that another such stage begins with, or that none does."""
    due: set[str] = set()
    for planned in reversed(stages):
        name = planned.stage.name
        users = {other.stage.name for other in stages if name in other.stage.uses()}
        gone = not Path(planned.result).exists() and (not users or bool(users & due))
        if state.get(name, {}).get("state") != "done" or gone:
            due.add(name)
    return due


def read_state(folder: Path) -> dict[str, dict[str, object]]:
    """The stages that are begun or done, by name. Raises ConfigError."""
    file = folder / STATE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ConfigError(
            f"{file} is no record of stages: put it back, or remove it to run every stage anew"
        )
    return found


def check_state(folder: Path, stages: Sequence[Planned]) -> None:
    """Raise ConfigError where a stage that is done was made by another recipe than this one."""
    state = read_state(folder)
    for planned in stages:
        noted = state.get(planned.stage.name, {})
        if noted.get("state") == "done" and noted.get("key") != planned.key:
            raise ConfigError(
                f"stage {planned.stage.name!r} is done, and the recipe has changed since: remove "
                f"{planned.folder} and its entry in {folder / STATE}, or run it under another --name"
            )


def _how_far(run: Path, settings: RunConfig) -> str:
    """The last whole checkpoint of a training, WHOLE where it has ended, "" where it has none."""
    with suppress(ConfigError):
        if read_status(run).outcome == "finished":
            return WHOLE
    found = latest(run / "checkpoints", lambda said: None)
    if found is None:
        return ""
    last = found.name == f"step_{settings.steps}"
    due = settings.eval.after and evaluation_is_due(run, settings.steps)
    return WHOLE if last and not due else found.name


def _last_line(log: Path) -> str:
    """The sentence that a stage ended with."""
    lines = log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error:")]
    return (errors or said or ["it has said nothing"])[-1]
