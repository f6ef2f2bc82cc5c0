"""Several operations on rows as one pass over memory.

A row kernel is a function of tensors with equally many rows, (rows, …), that writes its results into some of
them. Called as it is, on CPU it works off blocks of rows that stay in a core's cache. After `compile_kernels`
torch.compile makes one loop of it.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# Elements of a block: in float32 and with its neighbours about a core's second-level cache.
BLOCK = 1 << 17
# Graphs of one kernel: one for each width, dtype, layout and need of a gradient that comes. torch's own limit
# of eight is soon reached where a process has several policies.
GRAPHS = 64

_compiled = False


def compile_kernels(device: torch.device) -> None:
    """Let torch.compile make the row kernels, in this process from now on; each is made at its first use.

    Changes no result beyond rounding. Raises ValueError where the device is a CPU without a C++ compiler.
    """
    global _compiled
    if device.type == "cpu":
        from torch._inductor import exc
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise ValueError(
                "learner.compile needs a C++ compiler on the learner's machine, and none works: install g++ "
                "or set CXX, or leave learner.compile out"
            ) from error
    _compiled = True


class RowKernel:
    """Decorates such a function. What it returns is of all rows together, and added up over blocks."""

    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        self.function = function

    @cached_property
    def whole(self) -> Callable[..., Tensor | None]:
        """The function for all rows, compiled, for any number of them."""
        # A handful of small kernels, one after the other: no pool of processes that outlives them.
        return torch.compile(  # pyright: ignore[reportCallIssue]
            self.function,
            fullgraph=True,
            dynamic=False,
            recompile_limit=GRAPHS,
            options={"compile_threads": 1},
        )

    def __call__(self, *rows: Tensor, **shared: Any) -> Tensor | None:
        """rows: tensors to work on, in place or not; shared: what every row needs."""
        first = rows[0]
        # Fewer are one block. What is compiled first decides for any number: for a few rows it is no loop for
        # several threads, and a single row is an own case to a compiler.
        if _compiled and first.numel() >= BLOCK and len(first) > 1:
            for tensor in rows:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return self.whole(*rows, **shared)
        size = max(1, len(first))
        if first.device.type == "cpu":
            size = max(1, BLOCK * size // max(1, first.numel()))
        total: Tensor | None = None
        for block in zip(*(tensor.split(size) for tensor in rows), strict=True):
            part = self.function(*block, **shared)
            if part is not None:
                total = part if total is None else total + part
        return total
