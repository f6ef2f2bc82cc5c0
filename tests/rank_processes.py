"""Processes that are a learner's ranks, for tests: real torch.distributed over gloo on the loopback.

    with RankProcesses(2) as ranks:
        answers = ranks(function, argument, ...)     # one per rank: function(join, argument, ...)

`join(expert_parallel)` gives the process's `Ranks` over that mesh. Functions and arguments cross by pickling.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 120


class RankProcesses:
    """Started once for many calls; a process takes seconds to import torch."""

    def __init__(self, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, rank, count), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        meeting = self.pipes[0].recv()
        for pipe in self.pipes[1:]:
            pipe.send(meeting)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned on each rank; raises AssertionError with a rank's traceback."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(SECONDS), f"rank {rank} did not answer within {SECONDS} s"
            answers.append(pipe.recv())
        for rank, (error, _) in enumerate(answers):
            assert not error, f"rank {rank}:\n{error}"
        return [answer for _, answer in answers]

    def __enter__(self) -> "RankProcesses":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.terminate()
            process.join()


def _serve(pipe: Connection, rank: int, count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from trainer.parallel import Ranks, join, open_store, reach_store

    torch.set_num_threads(1)
    store = open_store("127.0.0.1") if rank == 0 else reach_store(pipe.recv())
    if rank == 0:
        pipe.send(f"127.0.0.1:{store.port}")
    flat = join(store, rank=rank, count=count, expert_parallel=1, device="cpu", seconds=SECONDS)

    @cache
    def joined(expert_parallel: int) -> Ranks:
        shape = (count // expert_parallel, expert_parallel)
        return replace(flat, mesh=init_device_mesh("cpu", shape, mesh_dim_names=("dp", "ep")))

    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send(("", function(joined, *arguments)))
        except Exception:
            pipe.send((traceback.format_exc(), None))
