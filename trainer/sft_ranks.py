"""Supervised training from its data to a folder of weights, on one process or several (`trainer.sft`).

A cold start on demonstrations (LongCat-Flash-Thinking, section 2) and training on chats are its users.
"""

import multiprocessing
import pickle
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # pyright: ignore
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)
from transformers import GenerationConfig

from trainer.config import LearnerConfig, SftConfig
from trainer.parallel import join, open_store, reach_store
from trainer.sample import TrainSample
from trainer.sft import Keeping, Report, SftStopped, train_sft

# A rank that waits this long for the others gives up, and with it the training.
RANK_SECONDS = 300.0
_LOOK_SECONDS = 0.2
# Set in the ranks' store once they have to stop.
_STOP = "stop"


class SftError(Exception):
    """A rank of the supervised training failed; the message is one sentence."""


def make_sft(
    checkpoint: str | Path,
    demonstrations: Sequence[TrainSample],
    sft: SftConfig,
    learner_config: LearnerConfig,
    folder: Path,
    *,
    seed: int,
    report: Report,
    keeping: Keeping | None = None,
) -> None:
    """Train as `train_sft` does, on `sft.ranks` processes, and write the result into `folder`.

    Each of several ranks has one thread: small products gain more from a rank each than from two threads.
    Raises SftError where one of several ranks fails; the others are ended with it. Raises SftStopped and
    CheckpointError as `train_sft` does.
    """
    if sft.ranks == 1:
        train_sft(
            checkpoint,
            demonstrations,
            sft,
            learner_config,
            seed=seed,
            report=report,
            keeping=keeping,
        ).save(folder)
    else:
        config = learner_config.model_copy(update={"threads": 1})
        arguments = (checkpoint, sft, config, folder, seed)
        _on_ranks(demonstrations, arguments, sft.ranks, report, keeping)
    _keep_end_tokens(checkpoint, folder)


def _keep_end_tokens(checkpoint: str | Path, folder: Path) -> None:
    """A checkpoint's generation config names the tokens that end a turn, beside the tokenizer's own."""
    try:
        # `save_pretrained` refuses what published checkpoints have, such as a temperature without sampling.
        GenerationConfig.from_pretrained(checkpoint).to_json_file(folder / "generation_config.json")
    except OSError:
        return  # it has none


def _on_ranks(
    demonstrations: Sequence[TrainSample],
    arguments: tuple[Any, ...],
    count: int,
    report: Report,
    keeping: Keeping | None,
) -> None:
    store = open_store("127.0.0.1")
    reports, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    stop = keeping.stop if keeping else lambda: False
    # What cannot cross to another process stays here.
    kept = keeping and (keeping.folder, keeping.every, keeping.minutes)
    steps: list[int] = []

    def told(step: int, loss: float) -> None:
        steps.append(step + 1)
        report(step, loss)

    def look() -> None:
        if stop():
            store.set(_STOP, "1")

    with tempfile.TemporaryDirectory(prefix="dorado-sft-") as shared:
        # By a file: what is handed to a process keeps the next from starting until it has imported torch, and
        # the store takes no more than 8 MiB.
        data = Path(shared) / "demonstrations.pickle"
        data.write_bytes(pickle.dumps(demonstrations))
        given = (store.port, sender, kept, data, *arguments)
        ranks = start_processes(_rank, given, count, join=False, daemon=True)
        assert ranks is not None, "not joined"
        try:
            if _follow(ranks, reports, told, look):
                raise SftStopped(steps[-1] if steps else 0)
        finally:
            for process in filter(None, ranks.processes):
                process.kill()
                process.join()
            reports.close()
            sender.close()


def _follow(
    ranks: ProcessContext, reports: Connection, report: Report, look: Callable[[], None]
) -> bool:
    """Hand reports on until every rank has ended; true where they have stopped early. Raises SftError."""
    ended = stopped = False
    while reports.poll(0 if ended else _LOOK_SECONDS) or not ended:
        look()
        try:
            ended = ended or ranks.join(timeout=0)
        except ProcessRaisedException as error:
            # A traceback ends with the class of the error and its sentence.
            raise SftError(re.sub(r"^[\w.]+: ", "", str(error).strip().splitlines()[-1])) from error
        except ProcessExitedException as error:
            raise SftError(f"rank {error.error_index}: {error}") from error
        while reports.poll():
            said = reports.recv()
            if said is None:
                stopped = True
            else:
                report(*said)
    return stopped


def _rank(
    rank: int,
    port: int,
    sender: Connection,
    kept: tuple[Path, int, float] | None,
    data: Path,
    checkpoint: str | Path,
    sft: SftConfig,
    config: LearnerConfig,
    folder: Path,
    seed: int,
) -> None:
    """The work of one process: its share of every update."""
    # Nothing of ours changes a rank's outputs in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    if kept:
        # A signal reaches all processes of a terminal: the first one decides, and none outlives it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
    store = reach_store(f"127.0.0.1:{port}")
    demonstrations: Sequence[TrainSample] = pickle.loads(data.read_bytes())
    ranks = join(
        store,
        rank=rank,
        count=sft.ranks,
        expert_parallel=1,
        device="cpu",
        seconds=RANK_SECONDS,
    )

    def report(step: int, loss: float) -> None:
        if rank == 0:
            sender.send((step, loss))

    keeping = Keeping(*kept, stop=_stops(store)) if kept else None
    try:
        train_sft(
            checkpoint,
            demonstrations,
            sft,
            config,
            seed=seed,
            report=report,
            ranks=ranks,
            keeping=keeping,
        ).save(folder)
    except SftStopped:
        if rank == 0:
            sender.send(None)


def _stops(store: TCPStore) -> Callable[[], bool]:
    return lambda: store.check([_STOP])
