"""Cold start: supervised training on demonstrations, before any reward (LongCat-Flash-Thinking, section 2).

Demonstrations are `TrainSample`s whose loss mask marks the policy's own tokens.
"""

import multiprocessing
import pickle
import random
import re
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from trainer.config import LearnerConfig, LossConfig, SftConfig
from trainer.learner import Learner
from trainer.parallel import ALONE, Ranks, join, open_store, reach_store
from trainer.sample import TrainSample

# A rank that waits this long for the others gives up, and with it the cold start.
RANK_SECONDS = 300.0
_LOOK_SECONDS = 0.2


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
    report: Callable[[int, float], None],
) -> None:
    """Train as `train_sft` does, on `sft.ranks` processes, and write the result into `folder`.

    Each of several ranks has one thread: small products gain more from a rank each than from two threads.
    Raises SftError where one of several ranks fails; the others are ended with it.
    """
    if sft.ranks == 1:
        train_sft(checkpoint, demonstrations, sft, learner_config, seed=seed, report=report).save(
            folder
        )
        return
    store = open_store("127.0.0.1")
    reports, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    config = learner_config.model_copy(update={"threads": 1})
    # By the store: what is handed to a process keeps the next from starting until it has imported torch.
    data: Any = pickle.dumps(list(demonstrations))  # bytes, which the stub does not know of
    store.set("demonstrations", data)
    arguments = (store.port, sender, checkpoint, sft, config, folder, seed)
    ranks = start_processes(_rank, arguments, sft.ranks, join=False, daemon=True)
    assert ranks is not None, "not joined"
    try:
        _follow(ranks, reports, report)
    finally:
        for process in filter(None, ranks.processes):
            process.kill()
            process.join()
        reports.close()
        sender.close()


def _follow(
    ranks: ProcessContext, reports: Connection, report: Callable[[int, float], None]
) -> None:
    """Hand reports on until every rank has ended. Raises SftError."""
    ended = False
    while reports.poll(0 if ended else _LOOK_SECONDS) or not ended:
        try:
            ended = ended or ranks.join(timeout=0)
        except ProcessRaisedException as error:
            # A traceback ends with the class of the error and its sentence.
            raise SftError(re.sub(r"^[\w.]+: ", "", str(error).strip().splitlines()[-1])) from error
        except ProcessExitedException as error:
            raise SftError(f"rank {error.error_index}: {error}") from error
        while reports.poll():
            report(*reports.recv())


def _rank(
    rank: int,
    port: int,
    sender: Connection,
    checkpoint: str | Path,
    sft: SftConfig,
    config: LearnerConfig,
    folder: Path,
    seed: int,
) -> None:
    """The work of one process: its share of every update."""
    # Nothing of ours changes a rank's outputs in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    store = reach_store(f"127.0.0.1:{port}")
    demonstrations: list[TrainSample] = pickle.loads(store.get("demonstrations"))
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

    train_sft(checkpoint, demonstrations, sft, config, seed=seed, report=report, ranks=ranks).save(
        folder
    )


def train_sft(
    checkpoint: str | Path,
    demonstrations: Sequence[TrainSample],
    sft: SftConfig,
    learner_config: LearnerConfig,
    *,
    seed: int,
    report: Callable[[int, float], None],
    ranks: Ranks = ALONE,
) -> Learner:
    """Imitate the demonstrations for `sft.steps` updates; `report(step, loss)` is called after each.

    All weights are trained, also where adapters are to be trained on the result. Returns the learner,
    whose `save` writes the result.
    """
    # Without a critic, which nothing here trains.
    changes = {"optim": sft.optim, "lora": None, "loss": LossConfig()}
    config = learner_config.model_copy(update=changes)
    learner = Learner(checkpoint, config, temperature=1.0, keep_versions=0, ranks=ranks)
    order = random.Random(seed)
    waiting: list[TrainSample] = []
    for step in range(sft.steps):
        while len(waiting) < sft.batch_size:
            waiting += order.sample(list(demonstrations), len(demonstrations))
        batch, waiting = waiting[: sft.batch_size], waiting[sft.batch_size :]
        report(step, learner.sft_step(batch)["sft/loss"])
    return learner
