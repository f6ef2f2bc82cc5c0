"""`dorado train`: from a checked configuration to a finished run, with nothing left behind on any way out.

SIGTERM or Ctrl-C while it trains: the step in progress is finished and a checkpoint is written, within
`timeouts.stop_seconds`; a second one, or one at any other time, ends it at once. `--resume` goes on from
there.
"""

import asyncio
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack

from ray.exceptions import RayError

from rl.actors.handles import StartError, by_node
from rl.cluster import Cluster
from rl.cold_start import ColdStartError, first_checkpoint
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.fleet.node_watch import NodesLost
from rl.fleet.weight_sync import SyncError
from rl.loop.resume import Resume
from rl.loop.run import Interrupted, Run
from rl.loop.run_error import RunError
from rl.nodes.deadline import within
from rl.nodes.process import cause, first_line, is_disk_full
from rl.preflight import own_settings, resolved
from rl.record.progress import COLD_START_SECONDS, ENGINES_SECONDS, Progress
from rl.record.run_folder import RunFolder
from rl.record.wandb_sink import WandbSink
from rl.samples.ledger import LedgerError
from rl.tasks.streams import OutOfTasks
from trainer.checkpoint_folder import CheckpointError, latest

OK, FAILED, INTERRUPTED = 0, 1, 130


def train(
    config: RunConfig, resume: Resume | None = None, origins: Mapping[str, str] | None = None
) -> int:
    """Run to the end. Returns the exit code; raises ConfigError before anything has been trained.

    config: has passed `check_run`. resume: go on from there, in that run's folder. origins: where values come
    from, for who reads it there.
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
        progress = endings.enter_context(Progress())
        if folder.kept is not None:
            progress.note(f"the earlier run of this name is kept as {folder.kept}")
        for said in resume.notes if resume else ():
            progress.note(said)
        try:
            return _train(config, folder, progress, endings, start, resume)
        except (ColdStartError, StartError) as error:
            progress.end(f"error: {error}")
            return FAILED
        except (OSError, sqlite3.Error, RayError) as error:
            if not is_disk_full(error):
                raise
            full = getattr(cause(error), "filename", None) or folder.path
            progress.end(
                f"error: {first_line(cause(error))}: the disk of {full} is full, or its quota"
                f"{_goes_on(folder, progress)}"
            )
            return FAILED
        except KeyboardInterrupt:
            progress.end(f"interrupted; what there is lies in {folder.path}")
            return INTERRUPTED


def _train(
    config: RunConfig,
    folder: RunFolder,
    progress: Progress,
    endings: ExitStack,
    start: float,
    resume: Resume | None,
) -> int:
    checkpoint, made = _cold_start(config, progress)
    timing = {"cold_start_seconds": round(time.time() - start, 1) if made else 0.0}
    if made:
        folder.event("run", "cold start", start, time.time())
    folder.keep_tokenizer(checkpoint)
    progress.stage(f"engines: starting {config.engine.count}", usual=ENGINES_SECONDS)
    cluster = Cluster(config, folder.path)
    endings.callback(cluster.stop)
    sink = WandbSink(config.wandb, folder)
    endings.callback(sink.close)
    cluster.connect()
    return asyncio.run(
        _run(config, cluster, folder, progress, sink, checkpoint, start, timing, resume)
    )


def _cold_start(config: RunConfig, progress: Progress) -> tuple[str, bool]:
    if config.model.init is not None or config.sft is not None:
        progress.stage("cold start", usual=COLD_START_SECONDS)
    checkpoint, made = first_checkpoint(config, progress.updates)
    if not made and (config.model.init is not None or config.sft is not None):
        progress.left.set(0.0)
        progress.note(f"cold start: kept from before in {checkpoint}")
    return checkpoint, made


async def _run(
    config: RunConfig,
    cluster: Cluster,
    folder: RunFolder,
    progress: Progress,
    sink: WandbSink,
    checkpoint: str,
    start: float,
    timing: dict[str, float],
    resume: Resume | None,
) -> int:
    main = asyncio.current_task()
    assert main is not None, "asyncio.run started this coroutine as a task"
    run: Run | None = None

    def stop() -> None:
        if run is None or not run.stop():
            main.cancel()
            return
        seconds = config.timeouts.stop_seconds
        asyncio.get_running_loop().call_later(seconds, main.cancel)
        progress.note(
            f"asked to end: after the step in progress, with a checkpoint, in {seconds:g} s at most; "
            "a second time ends the run at once"
        )

    # After ray.init, which puts a handler of its own in place of ours.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    status, code = "failed", FAILED
    began = time.time()
    try:
        actors = await cluster.start(checkpoint)
        folder.event("run", "engines start", began, time.time())
        timing["start_seconds"] = round(time.time() - began, 1)
        if len(nodes := by_node(actors)) > 1:
            for node, names in nodes.items():
                progress.note(f"on node {node}: {', '.join(names)}")
        if resume is not None:
            await _go_on(resume, cluster, folder, progress)
        run = Run(config, cluster, folder, progress, sink, resume)
        await run.main()
        status, code = "finished", OK
    except (RunError, CheckpointError, SyncError, NodesLost, LedgerError, OutOfTasks) as error:
        progress.end(f"error: {error} (run folder: {folder.path})")
    except (asyncio.CancelledError, Interrupted):
        status, code = "interrupted", INTERRUPTED
        on = _goes_on(folder, progress)
        progress.end(f"interrupted; what there is lies in {folder.path}{on}")
    finally:
        if run is not None:
            wall = round(time.time() - start, 1)
            folder.summary({"status": status, "wall_s": wall, **timing, **run.summary()})
    if run is not None and code == OK:
        progress.results(
            run.book.stats.evals.get("before", {}),
            run.book.stats.evals.get("after", {}),
            str(folder.path),
        )
    return code


def _goes_on(folder: RunFolder, progress: Progress) -> str:
    """How the run can go on; "" where it has no checkpoint yet."""
    last = latest(folder.path / "checkpoints", progress.note)
    return f"; --resume {folder.path} goes on after {last.name}" if last else ""


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
