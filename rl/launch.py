"""`dorado train`: from a checked configuration to a finished run, with nothing left behind on any way out."""

import asyncio
import signal
import time
from contextlib import ExitStack

from rl.check import check_run, resolved
from rl.cluster import Cluster, StartError
from rl.cold_start import ColdStartError, first_checkpoint
from rl.config import RunConfig
from rl.ledger import LedgerError
from rl.progress import Progress
from rl.run import Run, RunError
from rl.run_folder import RunFolder
from rl.tasks import OutOfTasks
from rl.wandb_sink import WandbSink
from rl.weight_sync import SyncError

OK, FAILED, INTERRUPTED = 0, 1, 130


def train(config: RunConfig) -> int:
    """Run to the end. Returns the exit code; raises ConfigError before anything has started."""
    check_run(config)
    config = resolved(config)
    start = time.time()
    folder = RunFolder(config)
    with ExitStack() as endings:
        endings.callback(folder.close)
        progress = endings.enter_context(Progress())
        if folder.kept is not None:
            progress.note(f"the earlier run of this name is kept as {folder.kept}")
        try:
            return _train(config, folder, progress, endings, start)
        except (ColdStartError, StartError) as error:
            progress.note(f"error: {error}")
            return FAILED
        except KeyboardInterrupt:
            progress.note(f"interrupted; what there is lies in {folder.path}")
            return INTERRUPTED


def _train(
    config: RunConfig, folder: RunFolder, progress: Progress, endings: ExitStack, start: float
) -> int:
    checkpoint, made = _cold_start(config, progress)
    timing = {"cold_start_seconds": round(time.time() - start, 1) if made else 0.0}
    if made:
        folder.event("run", "cold start", start, time.time())
    progress.stage(f"engines: starting {config.engine.count}")
    cluster = Cluster(config, folder.path)
    endings.callback(cluster.stop)
    sink = WandbSink(config, folder)
    endings.callback(sink.close)
    cluster.connect()
    return asyncio.run(_run(config, cluster, folder, progress, sink, checkpoint, start, timing))


def _cold_start(config: RunConfig, progress: Progress) -> tuple[str, bool]:
    if config.model.init is not None or config.sft is not None:
        progress.stage("cold start")
    checkpoint, made = first_checkpoint(config, progress.updates)
    if not made and (config.model.init is not None or config.sft is not None):
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
) -> int:
    main = asyncio.current_task()
    assert main is not None, "asyncio.run started this coroutine as a task"
    # After ray.init, which puts a handler of its own in place of ours.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, main.cancel)
    run: Run | None = None
    status, code = "failed", FAILED
    began = time.time()
    try:
        await cluster.start(checkpoint)
        folder.event("run", "engines start", began, time.time())
        timing["start_seconds"] = round(time.time() - began, 1)
        run = Run(config, cluster, folder, progress, sink)
        await run.main()
        status, code = "finished", OK
    except (RunError, SyncError, LedgerError, OutOfTasks) as error:
        progress.note(f"error: {error} (run folder: {folder.path})")
    except asyncio.CancelledError:
        status, code = "interrupted", INTERRUPTED
        progress.note(f"interrupted; what there is lies in {folder.path}")
    finally:
        if run is not None:
            wall = round(time.time() - start, 1)
            folder.summary({"status": status, "wall_s": wall, **timing, **run.summary()})
    if run is not None and code == OK:
        progress.results(run.evals.get("before", {}), run.evals.get("after", {}), str(folder.path))
    return code
