"""How many calls stage a version of a large policy, from a file that has its names and next to no data.

The names and sizes are those of Qwen3-30B-A3B as it is published, layer by layer, with as many layers as give
the asked number of names. Slices are cut by these sizes; the file has the names with every dimension 32 times
smaller. A slice is one call of the weight-transfer backend; a model that only takes names stands for vLLM's.
"""

import json
import math
import struct
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rollout import weight_transfer
from rollout.weight_file import cut
from rollout.weight_transfer import FileUpdateInfo, FileWeightTransfer

HIDDEN, EXPERT, EXPERTS, HEAD, VOCABULARY = 2048, 768, 128, 128, 151936
SMALLER = 32
MOST_CALLS = 200


@dataclass(frozen=True)
class Staging:
    """One version into one worker. calls: the engine's to it; on a CPU `conversions` come on top."""

    tensors: int
    gigabytes: float
    calls: int
    conversions: int
    opened: int
    seconds: float


class Names:
    """Takes weights by their names."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self) -> None:
        self.names = []

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.names += [name for name, _ in weights]

    def convert(self, share: float) -> None: ...

    def swap(self) -> None: ...


def layer(number: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer, by published name."""
    at, heads, groups = f"model.layers.{number}", 32 * HEAD, 4 * HEAD
    shapes: dict[str, tuple[int, ...]] = {
        f"{at}.input_layernorm.weight": (HIDDEN,),
        f"{at}.self_attn.q_proj.weight": (heads, HIDDEN),
        f"{at}.self_attn.k_proj.weight": (groups, HIDDEN),
        f"{at}.self_attn.v_proj.weight": (groups, HIDDEN),
        f"{at}.self_attn.o_proj.weight": (HIDDEN, heads),
        f"{at}.self_attn.q_norm.weight": (HEAD,),
        f"{at}.self_attn.k_norm.weight": (HEAD,),
        f"{at}.post_attention_layernorm.weight": (HIDDEN,),
        f"{at}.mlp.gate.weight": (EXPERTS, HIDDEN),
    }
    for expert in range(EXPERTS):
        for part in ("gate", "up", "down"):
            shape = (HIDDEN, EXPERT) if part == "down" else (EXPERT, HIDDEN)
            shapes[f"{at}.mlp.experts.{expert}.{part}_proj.weight"] = shape
    return shapes


def published(tensors: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name, `tensors` of them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    last = {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    number = 0
    while len(shapes) < tensors - len(last):
        shapes |= layer(number)
        number += 1
    return dict(list(shapes.items())[: tensors - len(last)]) | last


def write_small(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """A safetensors file of bfloat16 zeros with these names, every dimension `SMALLER` times smaller."""
    header: dict[str, object] = {}
    end = 0
    for name, large in shapes.items():
        shape = [max(1, one // SMALLER) for one in large]
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def staging(tensors: int) -> Staging:
    """Stage a file of so many names. Raises AssertionError where not each was taken once."""
    opens = 0
    safe_open = weight_transfer.safe_open

    def counted(*arguments: str, **options: str) -> object:
        nonlocal opens
        opens += 1
        return safe_open(*arguments, **options)  # pyright: ignore[reportCallIssue]

    transfer = object.__new__(FileWeightTransfer)
    transfer.staged = taken = Names()
    weight_transfer.safe_open = counted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "version.safetensors"
            shapes = published(tensors)
            write_small(shapes, path)
            sizes = [(name, 2 * math.prod(shape)) for name, shape in shapes.items()]
            start = time.perf_counter()
            slices = cut(sizes)
            for index, names in enumerate(slices):
                transfer.receive_weights(FileUpdateInfo(str(path), names, first=index == 0))
            seconds = time.perf_counter() - start
            transfer.finish_weight_update()
    finally:
        weight_transfer.safe_open = safe_open
    assert taken.names == list(shapes), "each name once, in the file's order"
    return Staging(
        tensors=len(shapes),
        gigabytes=sum(size for _, size in sizes) / 1e9,
        calls=len(slices),
        conversions=(len(slices) + 1) // 2,
        opened=opens,
        seconds=seconds,
    )
