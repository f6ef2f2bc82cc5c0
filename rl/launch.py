"""`dorado train`: from a checked configuration to a finished run, with nothing left behind on any way out.

SIGTERM or Ctrl-C while it trains: the step in progress is finished and a checkpoint is written, within
`timeouts.stop_seconds`; a second one, or one at any other time, ends it at once. `--resume` goes on from
there. Every end is one sentence: what has ended the run, and what to type next.
"""

import asyncio
import os
import sqlite3
import sys
import time
import traceback
from collections.abc import Coroutine, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import ray
from ray.exceptions import RayError

from envs.process_end import ends_refused
from envs.text import encodable
from rl.actors.handles import Actors, StartError, by_node
from rl.cluster import Cluster
from rl.cold_start import ColdStartError, first_checkpoint
from rl.commands import ignore_signals, on_signals
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.fleet.node_watch import ControlLost, NodesLost, control_seconds, watch_control
from rl.fleet.weight_sync import SyncError
from rl.loop.resume import Resume
from rl.loop.run import Interrupted, Run
from rl.loop.run_error import Collapsed, RunError
from rl.nodes.deadline import while_watching, within
from rl.nodes.nodes import control_address, control_answers
from rl.nodes.process import cause, first_line, is_disk_full
from rl.preflight.settings import own_settings, resolved
from rl.preflight.tokenizer import check_new_tokenizer
from rl.record.checkpoint_choice import best_checkpoint
from rl.record.progress import COLD_START_SECONDS, ENGINES_SECONDS, Progress
from rl.record.provenance import provenance
from rl.record.run_folder import RunFolder
from rl.record.status import Outcome, write_end
from rl.record.teachers import with_teachers
from rl.samples.ledger import LedgerError
from rl.tasks.streams import OutOfTasks
from rl.trackers.trackers import Trackers
from trainer.checkpoint_folder import CheckpointError, latest

OK, FAILED, INTERRUPTED = 0, 1, 130
CODES: dict[Outcome, int] = {"finished": OK, "failed": FAILED, "interrupted": INTERRUPTED}
T = TypeVar("T")
# Errors whose message is a sentence for the user.
SENTENCES = (RunError, CheckpointError, SyncError, NodesLost, LedgerError, OutOfTasks)


@ends_refused()
def train(
    config: RunConfig, resume: Resume | None = None, origins: Mapping[str, str] | None = None
) -> int:
    """Run to the end. Returns the exit code; raises ConfigError before anything has been trained.

    config: has passed `check_run`. resume: go on from there, in that run's folder. origins: where values come
    from, for who reads it there. What no sentence is known for is raised as it is, and said to be so.
    """
    origins = {**own_settings(config), **(origins or {})}
    config = resolved(config)
    start = time.time()
    try:
        folder = RunFolder(config, resume=resume is not None, origins=origins)
    except (OSError, sqlite3.Error) as error:
        if not is_disk_full(error):
            raise
        raise ConfigError(f"runs_dir: the disk of {config.folder} is full, or its quota") from None
    with ExitStack() as endings:
        endings.callback(folder.close)
        folder.started(provenance())
        progress = endings.enter_context(Progress(log=folder.path / "logs" / "terminal.log"))
        if folder.kept is not None:
            progress.note(f"the earlier run of this name is kept as {folder.kept}")
        for said in resume.notes if resume else ():
            progress.note(said)
        try:
            _train(config, folder, progress, endings, start, resume)
        except ConfigError:
            raise
        except BaseException as error:
            outcome, sentence = _ending(error, folder, progress)
            write_end(folder.path, outcome, sentence)
            if not sentence:
                raise
            progress.end(sentence)
            return CODES[outcome]
        write_end(folder.path, "finished", "")
        return OK


def train_or_say_why(
    config: RunConfig, resume: Resume | None = None, origins: Mapping[str, str] | None = None
) -> int:
    """`train`, and one sentence also for an error that no part of a run has one for.

    Its traceback goes to logs/error.log in the run folder. Raises ConfigError.
    """
    try:
        code = train(config, resume, origins)
        if ray.is_initialized():
            # Ray's control service is gone, and what Ray does when a process ends crashes without it.
            sys.stdout.flush()
            os._exit(code)
        return code
    except (ConfigError, ModuleNotFoundError):
        raise
    except (Exception, SystemExit) as error:
        log = _write_error(config.folder, "".join(traceback.format_exception(error)))
        where = traceback.extract_tb(error.__traceback__)[-1]
        sentence = (
            f"error: {type(error).__name__}: {first_line(error)}, in {where.filename}:{where.lineno}, is an "
            f"error of dorado or of a plugin (traceback: {log}); where {config.folder} has a checkpoint, "
            f"--resume {config.folder} goes on from there"
        )
        print(sentence)
        if config.folder.is_dir():
            write_end(config.folder, "failed", sentence)
        return FAILED


def _write_error(folder: Path, text: str) -> Path:
    """Add a traceback to the error log of a run folder that is there; returns its path."""
    log = folder / "logs" / "error.log"
    if log.parent.is_dir():
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(encodable(text))
    return log


def _ending(error: BaseException, folder: RunFolder, progress: Progress) -> tuple[Outcome, str]:
    """How the run has ended, and the sentence that says so; "" where none is known."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | Interrupted):
        on = _next(folder, progress)
        return "interrupted", f"interrupted; what there is lies in {folder.path}{on}"
    if isinstance(error, ColdStartError | StartError):
        return "failed", f"error: {error}"
    if isinstance(error, Collapsed):
        said = f"error: {error} (run folder: {folder.path})"
        return "failed", said + _after_collapse(folder, progress)
    if isinstance(error, SENTENCES):
        on = _next(folder, progress)
        return "failed", f"error: {error} (run folder: {folder.path}){on}"
    if isinstance(error, OSError | sqlite3.Error | RayError) and is_disk_full(error):
        full = getattr(cause(error), "filename", None) or folder.path
        return "failed", (
            f"error: {first_line(cause(error))}: the disk of {full} is full, or its quota"
            f"{_goes_on(folder, progress)}"
        )
    if isinstance(error, RayError):
        return "failed", f"error: Ray: {first_line(error)}{_next(folder, progress)}"
    return "failed", ""


def _train(
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    endings: ExitStack,
    start: float,
    resume: Resume | None,
) -> None:
    trackers = Trackers(folder, progress.note)
    endings.callback(trackers.close)
    trackers.begin()
    checkpoint, made = _cold_start(config, progress)
    timing = {"cold_start_seconds": round(time.time() - start, 1) if made else 0.0}
    if made:
        folder.event("run", "cold start", start, time.time())
    folder.keep_tokenizer(checkpoint)
    config = with_teachers(config, checkpoint)
    progress.stage(f"engines: starting {config.engine.count}", usual=ENGINES_SECONDS)
    cluster = Cluster(config, folder.path)
    endings.callback(cluster.stop)
    # Before the cluster, which ends all that this process has started.
    endings.callback(trackers.close)
    # The first of the endings: whatever asks for the end again finds it on its way.
    endings.callback(ignore_signals)
    cluster.connect()
    asyncio.run(
        _run(config, cluster, folder, progress, trackers, checkpoint, start, timing, resume)
    )


def _cold_start(config: RunConfig, progress: Progress) -> tuple[str, bool]:
    if config.model.init is not None or config.sft is not None:
        progress.stage("cold start", usual=COLD_START_SECONDS)
    checkpoint, made = first_checkpoint(
        config, progress.updates, partial(check_new_tokenizer, config)
    )
    if not made and (config.model.init is not None or config.sft is not None):
        progress.left.set(0.0)
        progress.note(f"cold start: kept from before in {checkpoint}")
    return checkpoint, made


def _keep_error(folder: Path, context: Mapping[str, object]) -> None:
    """Write down the error of a task that nobody waits for any more; the terminal has its cause."""
    error = context.get("exception")
    traced = traceback.format_exception(error) if isinstance(error, BaseException) else []
    _write_error(folder, f"{context.get('message')}\n{''.join(traced)}\n")


async def _run(
    config: RunConfig,
    cluster: Cluster,
    folder: RunFolder,
    progress: Progress,
    trackers: Trackers,
    checkpoint: str,
    start: float,
    timing: dict[str, float],
    resume: Resume | None,
) -> None:
    main = asyncio.current_task()
    assert main is not None, "asyncio.run started this coroutine as a task"
    loop = asyncio.get_running_loop()
    run: Run | None = None

    def stop() -> None:
        if run is None or not run.stop():
            main.cancel()
            return
        seconds = config.timeouts.stop_seconds
        loop.call_later(seconds, main.cancel)
        progress.note(
            f"asked to end: after the step in progress, with a checkpoint, in {seconds:g} s at most; "
            "a second time ends the run at once"
        )

    loop.set_exception_handler(lambda _, context: _keep_error(folder.path, context))
    # Not the loop's own handlers, which leave the default ones behind when it ends.
    on_signals(lambda: loop.call_soon_threadsafe(stop))
    status: Outcome = "failed"
    try:
        act = _started(cluster, checkpoint, folder, progress, timing, resume)
        actors = await _watched(act, config)
        if len(nodes := by_node(actors)) > 1:
            for node, names in nodes.items():
                progress.note(f"on node {node}: {', '.join(names)}")
        trackers.start()
        run = Run(config, cluster, folder, progress, trackers, resume)
        await run.main()
        status, evals = "finished", run.book.stats.evals
    except (asyncio.CancelledError, Interrupted):
        status = "interrupted"
        raise
    except ControlLost:
        cluster.control_lost = True
        raise
    finally:
        ignore_signals()
        if run is not None:
            wall = round(time.time() - start, 1)
            folder.summary({"status": status, "wall_s": wall, **timing, **run.summary()})
    progress.results(evals.get("before", {}), evals.get("after", {}), str(folder.path))


async def _watched(act: Coroutine[object, object, T], config: RunConfig) -> T:
    """The result of `act`. Raises ControlLost where Ray's control service is gone."""
    address, seconds = control_address(), control_seconds(config.cluster.address)
    watching = asyncio.create_task(watch_control(address, seconds))
    try:
        return await while_watching(act, watching)
    except (StartError, RayError):
        # Who asks Ray for something may learn first that it is gone.
        if address and await control_answers(address, 1.0) == "refuses":
            await watching
        raise
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _started(
    cluster: Cluster,
    checkpoint: str,
    folder: RunFolder,
    progress: Progress,
    timing: dict[str, float],
    resume: Resume | None,
) -> Actors:
    """Start the actors, and bring what goes on to its checkpoint. Raises StartError, ConfigError."""
    began = time.time()
    actors = await cluster.start(checkpoint)
    folder.event("run", "engines start", began, time.time())
    timing["start_seconds"] = round(time.time() - began, 1)
    if resume is not None:
        await _go_on(resume, cluster, folder, progress)
    return actors


def _goes_on(folder: RunFolder, progress: Progress) -> str:
    """How the run can go on; "" where it has no checkpoint yet."""
    last = latest(folder.path / "checkpoints", progress.note)
    return f"; --resume {folder.path} goes on after {last.name}" if last else ""


def _next(folder: RunFolder, progress: Progress) -> str:
    """Say what to type next: the run goes on, or where it has no checkpoint begins anew."""
    anew = f"; it has no checkpoint yet: dorado train {folder.path}/config.toml begins it anew"
    return _goes_on(folder, progress) or anew


def _after_collapse(folder: RunFolder, progress: Progress) -> str:
    """Say what to type next where the last checkpoint is of no use: the best one, or an earlier one."""
    with suppress(ConfigError):
        best = best_checkpoint(folder.path).name
        return f"; with other settings --resume {folder.path} --best goes on after {best}, its best"
    if latest(folder.path / "checkpoints", progress.note) is None:
        return _next(folder, progress)
    return f"; with other settings --resume {folder.path}/step_N goes on after an earlier step N"


async def _go_on(resume: Resume, cluster: Cluster, folder: RunFolder, progress: Progress) -> None:
    """Bring the learner, then the folder, to the checkpoint. Raises ConfigError, StartError."""
    assert cluster.actors is not None, "the cluster has been started"
    seconds = cluster.config.timeouts.step_seconds
    try:
        load = cluster.actors.learner.load.remote(str(resume.checkpoint.resolve()))
        await within(load, seconds)
    except TimeoutError:
        raise StartError(f"the learner did not read {resume.checkpoint} in {seconds:g} s") from None
    except CheckpointError as error:
        raise ConfigError(f"--resume: {cause(error)}") from None
    except RayError as error:
        raise StartError(f"the learner could not go on: {first_line(error)}") from None
    aside = folder.go_on(resume.step)
    progress.note(
        f"goes on after step {resume.step} ({resume.checkpoint}); what came after it is kept in {aside}"
    )
