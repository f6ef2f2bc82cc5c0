"""The learner's forward, backward and optimizer step against transformers' own model, on the same inputs.

    python benchmarks/learner.py [--device cpu|cuda] [--no-compile] [--json]

LongCat-Flash in bfloat16, random weights. *tiny* and *small*: a batch of equal sequences; *packing*:
sequences of long-tailed lengths, packed by the learner against the learner on rows padded to the longest. The
other side of tiny and small is transformers' model with bfloat16 weights, AdamW on them, and the attention
(eager or sdpa) that is the faster one. The learner's side is what a training step of its does with
`learner.compile`, float32 master weights included. Learner and transformers have a process each, so that
neither lives with the memory that the other has left, and both have the allocator that the learner sets up.
Sides take turns; a figure is the median over the turns of their ratio.

*product*: a plain product of two square matrices in bfloat16, measured between the turns; *share*: what the
learner's step reaches of it, counting the products that the formulas ask for, not those that are done twice.
On a GPU *share* is the model FLOP utilisation against that product, and memory is the allocator's peak.

Targets on CPU: tiny 1.3, small 1.8 and a share of 0.4, packing 2. Exits with 1 where one is missed.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LongcatFlashConfig

from rl.nodes.cpus import usable_cpus
from trainer.batch import PackedBatch
from trainer.config import OptimConfig
from trainer.cpu.allocator import keep_freed_memory
from trainer.cpu.attention import Layout, plan_buckets
from trainer.cpu.row_kernel import compile_kernels
from trainer.families.family import Preset
from trainer.optimizer import Optimizer
from trainer.policy import build_policy
from trainer.scorer import Scorer
from trainer.small.presets import VOCAB_SIZE, model_config

SEQUENCES, LENGTH = 16, 256
TURNS = {"tiny": 15, "small": 7, "packing": 3}
PRODUCT = {"cpu": 2048, "cuda": 8192}
TARGETS = {("tiny", "speedup"): 1.3, ("small", "speedup"): 1.8, ("small", "matmul_share"): 0.4}
TARGETS |= {("packing", "speedup"): 2.0}
OPTIM = OptimConfig(lr=1e-5)

Rows = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Result:
    """One comparison. tokens per second count real tokens; gflops: the plain product's."""

    parameters: int
    tokens: int
    speedup: float
    tokens_per_second: float
    other_tokens_per_second: float
    matmul_share: float
    product_gflops: float
    peak_memory_gb: float
    other_peak_memory_gb: float


def config_of(preset: Preset) -> LongcatFlashConfig:
    """The preset, with a vocabulary and no tokenizer."""
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = model_config("longcat_flash", preset, {"vocab_size": VOCAB_SIZE[preset], **tokens})
    assert isinstance(config, LongcatFlashConfig)
    return config


def sequences(lengths: Sequence[int], vocabulary: int) -> list[torch.Tensor]:
    """Random tokens."""
    return [torch.randint(3, vocabulary, (n,)) for n in lengths]


def packed(rows: Rows, device: torch.device, *, pad_to: int = 0) -> PackedBatch:
    """The sequences as one stream, longest first; every token but a sequence's first is predicted.

    pad_to: fill each up to so many tokens, which are computed and not predicted.
    """
    rows = sorted(rows, key=len, reverse=True)
    filled = [torch.nn.functional.pad(row, (0, max(0, pad_to - len(row)))) for row in rows]
    lengths = [len(row) for row in filled]
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    source = torch.cat(
        [s + torch.arange(len(row) - 1) for s, row in zip(starts, rows, strict=True)]
    )
    zeros = torch.zeros(len(source))
    return PackedBatch(
        input_ids_T=torch.cat(filled).to(device),
        position_ids_T=torch.cat([torch.arange(n) for n in lengths]).to(device),
        source_N=source.to(device),
        before_N=source.to(device),
        target_N=torch.cat([row[1:] for row in rows]).to(device),
        sample_N=torch.zeros(len(source), dtype=torch.long, device=device),
        rollout_logprobs_N=zeros.to(device),
        advantages_N=torch.randn(len(source), generator=torch.Generator().manual_seed(1)).to(
            device
        ),
        versions_N=zeros.long().to(device),
        routing_TLK=None,
        path_A=torch.arange(sum(lengths), device=device),
        versions=frozenset((0,)),
        num_tokens=sum(map(len, rows)),
        samples=tuple(range(len(rows))),
        lengths=tuple(lengths),
        new=tuple(lengths),
        layout=Layout(plan_buckets(lengths, device)),
    )


class Ours:
    """A training step of the learner's parts."""

    def __init__(self, config: LongcatFlashConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.routed = config.n_routed_experts
        self.scorer = Scorer(build_policy(config, torch.float32), 1.0).to(device)
        self.optimizer = Optimizer(self.scorer, OPTIM, torch.bfloat16)

    def step(self, batches: Sequence[PackedBatch]) -> None:
        """Micro-batch after micro-batch, then an update."""
        tokens = sum(len(batch.target_N) for batch in batches)
        for batch in batches:
            logprobs_N = self.scorer(batch).logprobs_N
            (-(logprobs_N * batch.advantages_N).sum() / tokens).backward()
        self.optimizer.clip()
        self.optimizer.step()

    def pairs(self) -> int:
        """Token-expert pairs with computation in the latest forward pass, over all layers."""
        return sum(
            int((used < self.routed).sum()) for used in self.scorer.routing_record.used_TK.values()
        )


class Theirs:
    """The same step as one would write it with transformers' model."""

    def __init__(self, config: LongcatFlashConfig, device: torch.device, attention: str) -> None:
        torch.manual_seed(0)
        self.model: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        ).to(device)
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=OPTIM.lr)

    def step(self, ids: torch.Tensor, advantages: torch.Tensor) -> None:
        """ids: (rows, length). advantages: of each token but a row's first."""
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        (-(logprobs * advantages).sum() / advantages.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIM.max_grad_norm)
        self.adam.step()
        self.adam.zero_grad()


def flops(config: LongcatFlashConfig, lengths: Sequence[int], pairs: int) -> float:
    """Products of one step: forward, and twice as much backward. `pairs`: as `Ours.pairs`."""
    D, H, P, R = config.hidden_size, config.num_attention_heads, config.qk_nope_head_dim, 64
    V, latent, rank = config.v_head_dim, config.kv_lora_rank, config.q_lora_rank
    attention = D * rank + rank * H * (P + R) + D * (latent + R) + latent * H * (P + V) + H * V * D
    dense = 3 * D * config.ffn_hidden_size
    experts = config.n_routed_experts + (config.zero_expert_num or 0)
    per_token = (
        config.num_layers * (2 * attention + 2 * dense + D * experts) + D * config.vocab_size
    )
    scores = sum(n * (n + 1) // 2 for n in lengths) * 2 * config.num_layers * H * (P + R + V)
    inner = pairs * 3 * D * config.expert_ffn_hidden_size
    return 3 * 2.0 * (sum(lengths) * per_token + scores + inner)


class Clock:
    """Times steps on a device, and the plain product between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = PRODUCT[device.type]
        self.a, self.b = (
            torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in "ab"
        )
        self.products: list[float] = []

    def seconds(self, act: Callable[[], object]) -> float:
        """Seconds of one call, to the device's end of it."""
        self._finish()
        start = time.perf_counter()
        act()
        self._finish()
        return time.perf_counter() - start

    def product(self) -> float:
        """FLOP/s of the plain product, the median so far."""
        runs = [self.seconds(lambda: self.a @ self.b) for _ in range(3)]
        self.products.append(2 * len(self.a) ** 3 / median(runs))
        return median(self.products)

    def peak_gb(self, act: Callable[[], object]) -> float:
        """The allocator's peak of one call, 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated() / 1e9

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Worker:
    """A side's process: steps by name, and a clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = Clock(device)
        self.steps: dict[str, Callable[[], object]] = {}
        self.ours: Ours | None = None

    def load_ours(self, preset: Preset, rows: Rows) -> None:
        """`step`: the learner's on these sequences."""
        ours = self.ours = Ours(config_of(preset), self.device)
        batch = packed(rows, self.device)
        self.steps = {"step": lambda: ours.step([batch])}

    def load_theirs(self, preset: Preset, rows: Rows, attention: str) -> None:
        """`step`: that of transformers' model."""
        self.steps = {}
        theirs = Theirs(config_of(preset), self.device, attention)
        advantages = packed(rows, self.device).advantages_N.view(len(rows), -1)
        ids = torch.stack(list(rows)).to(self.device)
        self.steps = {"step": lambda: theirs.step(ids, advantages)}

    def load_padding(self, rows: Rows) -> None:
        """`packed` and `padded`: the learner's steps on the same sequences."""
        ours = self.ours = Ours(config_of("small"), self.device)
        batch = packed(rows, self.device)
        # As many tokens in a micro-batch on either side, as memory allows.
        longest = max(map(len, rows))
        padded = [
            packed(rows[i : i + 4], self.device, pad_to=longest) for i in range(0, len(rows), 4)
        ]
        self.steps = {"padded": lambda: ours.step(padded), "packed": lambda: ours.step([batch])}

    def seconds(self, step: str) -> float:
        """Seconds of one step."""
        return self.clock.seconds(self.steps[step])

    def product(self) -> float:
        """FLOP/s of the plain product, the median so far."""
        return self.clock.product()

    def peak_gb(self, step: str) -> float:
        """The allocator's peak of one step, 0 on a CPU."""
        return self.clock.peak_gb(self.steps[step])

    def counts(self) -> tuple[int, int]:
        """The learner's parameters, and the token-expert pairs of its latest forward pass."""
        assert self.ours is not None, "the learner's side"
        return sum(p.numel() for p in self.ours.scorer.parameters()), self.ours.pairs()


class Side:
    """A process with a worker."""

    def __init__(self, device: str, *, compiled: bool) -> None:
        spawn = get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, _start_worker, (device, compiled))

    def ask(self, method: str, *arguments: Any) -> Any:
        """The return value of the worker's method."""
        return self.pool.submit(_ask_worker, method, arguments).result()


def _start_worker(device: str, compiled: bool) -> None:
    global _worker
    torch.set_num_threads(usable_cpus())
    keep_freed_memory()
    if compiled:
        compile_kernels(torch.device(device))
    _worker = Worker(torch.device(device))


def _ask_worker(method: str, arguments: Sequence[Any]) -> Any:
    return getattr(_worker, method)(*arguments)


def against_transformers(preset: Preset, ours: Side, theirs: Side) -> Result:
    """Equal sequences; no packing to gain from."""
    config = config_of(preset)
    rows = sequences([LENGTH] * SEQUENCES, config.vocab_size)
    ours.ask("load_ours", preset, rows)
    times = {}
    for attention in ("eager", "sdpa"):
        theirs.ask("load_theirs", preset, rows, attention)
        times[attention] = min(theirs.ask("seconds", "step") for _ in range(3))
    if times["eager"] < times["sdpa"]:
        theirs.ask("load_theirs", preset, rows, "eager")
    return compare(config, [LENGTH] * SEQUENCES, TURNS[preset], (ours, "step"), (theirs, "step"))


def against_padding(ours: Side) -> Result:
    """Long-tailed lengths (log-normal, median 96, longest 1,024), packed against padded."""
    config = config_of("small")
    draw = random.Random(0)
    lengths = [
        1024,
        *(min(1024, max(16, round(draw.lognormvariate(4.56, 1.0)))) for _ in range(15)),
    ]
    ours.ask("load_padding", sequences(lengths, config.vocab_size))
    return compare(config, lengths, TURNS["packing"], (ours, "packed"), (ours, "padded"))


def compare(
    config: LongcatFlashConfig,
    lengths: Sequence[int],
    turns: int,
    ours: tuple[Side, str],
    other: tuple[Side, str],
) -> Result:
    """Warm up, then take turns."""
    (mine, my_step), (their, their_step) = ours, other
    their_peak, my_peak = their.ask("peak_gb", their_step), mine.ask("peak_gb", my_step)
    for side, step in (other, ours, other, ours):
        side.ask("seconds", step)
    parameters, pairs = mine.ask("counts")
    turns_taken, product = [], mine.ask("product")
    for _ in range(turns):
        turns_taken.append((mine.ask("seconds", my_step), their.ask("seconds", their_step)))
        product = mine.ask("product")
    tokens = sum(lengths)
    my_seconds, their_seconds = (median(turn[i] for turn in turns_taken) for i in (0, 1))
    return Result(
        parameters=parameters,
        tokens=tokens,
        speedup=median(b / a for a, b in turns_taken),
        tokens_per_second=tokens / my_seconds,
        other_tokens_per_second=tokens / their_seconds,
        matmul_share=flops(config, lengths, pairs) / my_seconds / product,
        product_gflops=product / 1e9,
        peak_memory_gb=my_peak,
        other_peak_memory_gb=their_peak,
    )


def main() -> int:
    """Print the figures; 1 where a target is missed on CPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="without learner.compile")
    parser.add_argument("--json", action="store_true", help="figures as JSON, nothing else")
    arguments = parser.parse_args()
    device, compiled = arguments.device, not arguments.no_compile
    ours, theirs = Side(device, compiled=compiled), Side(device, compiled=False)
    results = {
        "tiny": against_transformers("tiny", ours, theirs),
        "small": against_transformers("small", ours, theirs),
        "packing": against_padding(ours),
    }
    if arguments.json:
        print(json.dumps({name: asdict(r) for name, r in results.items()}, indent=2))
    else:
        show(results, device)
    missed = [
        f"{name}.{key} is {asdict(results[name])[key]:.2f}, the target is {target:g}"
        for (name, key), target in TARGETS.items()
        if device == "cpu" and asdict(results[name])[key] < target
    ]
    print(*missed, sep="\n", file=sys.stderr, end="\n" if missed else "")
    return 1 if missed else 0


def show(results: dict[str, Result], device: str) -> None:
    """The figures as a table."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{usable_cpus()} CPUs"
    table = Table("", *results, title=f"LongCat-Flash in bfloat16, {name}")
    for key in asdict(next(iter(results.values()))):
        row = [asdict(r)[key] for r in results.values()]
        table.add_row(key, *(f"{v:,}" if isinstance(v, int) else f"{v:,.2f}" for v in row))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
