"""Rows in blocks that stay in a CPU core's cache.

Several operations on one block after another take one pass over memory, and not one pass each.
"""

from collections.abc import Iterator

from torch import Tensor

# Elements of a block: in float32 and with its neighbours about a core's second-level cache.
BLOCK = 1 << 17


def row_blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of equally many rows, cut alike into as many as `first`, (rows, width), has in a block.

    Elsewhere than on CPU there is one block.
    """
    rows = max(1, BLOCK // first.shape[1]) if first.device.type == "cpu" else len(first)
    return zip(*(t.split(rows) for t in (first, *others)), strict=True)
