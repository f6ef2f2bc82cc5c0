"""What the tests of checkpoints and determinism run in processes of their own."""

import json
import os
import random
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from fakes import sample
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from trainer.checkpoint import CheckpointWriter, LearnerState, load, named_weights
from trainer.checkpoint_folder import CheckpointError, latest
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.learner import Learner
from trainer.sample import TrainSample

STEPS = 12
WATCHED = ("loss/loss", "loss/entropy", "optim/grad_norm", "parity/mean_abs_dlogp")


def new_learner(checkpoint: Path, *, threads: int = 1, **config) -> Learner:
    """A deterministic learner that keeps one earlier version."""
    settings = {
        "deterministic": True,
        "optim": OptimConfig(lr=1e-3, warmup_steps=3, decay_steps=40),
        "loss": LossConfig(max_completion_tokens=20),
    }
    return Learner(
        checkpoint,
        LearnerConfig(threads=threads, **{**settings, **config}),
        temperature=1.0,
        keep_versions=1,
    )


def batch(version: int, size: int = 6, longest: int = 60) -> list[TrainSample]:
    """What a learner at this version trains on: half of it written by the version before."""
    rng = random.Random(version)
    return [
        sample(f"s{i}", rng.randint(8, longest), rng, version=max(0, version - i % 2))
        for i in range(size)
    ]


def watched(metrics: dict[str, float]) -> list[str]:
    """The metrics to the bit."""
    return [metrics[name].hex() for name in WATCHED]


def train(checkpoint: Path, folder: Path, log: Path) -> None:
    """Go on from the last whole checkpoint to the end, saving behind every step; a line of the log each."""
    learner = new_learner(checkpoint)
    last = latest(folder, lambda said: None)
    if last is not None:
        learner.load_state(last)
    with log.open("a", encoding="utf-8") as out:
        while learner.version < STEPS:
            step = learner.version + 1
            out.write(
                json.dumps([step, watched(learner.step(batch(learner.version)).metrics)]) + "\n"
            )
            out.flush()
            learner.save_state(folder / f"step_{step}")
    learner.wait_saved()


def several_learners(checkpoints: list[Path], *, threads: int, deterministic: bool) -> None:
    """Print what three steps of each checkpoint give, the first in float32, the second in bfloat16."""
    found = {}
    for checkpoint, dtype in zip(checkpoints, ("float32", "bfloat16"), strict=True):
        settings = {"dtype": dtype, "deterministic": deterministic}
        learner = new_learner(checkpoint, threads=threads, **settings)
        steps = [watched(learner.step(batch(v, size=24, longest=160)).metrics) for v in range(3)]
        found[f"{checkpoint.name} {dtype}"] = steps
    print(json.dumps(found))


def toy() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model whose rows do not divide evenly, and its optimizer, the same in every process."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def toy_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, past: dict[int, dict[str, torch.Tensor]]
) -> LearnerState:
    """The toy's state."""
    return LearnerState(named_weights(model), optimizer, past, torch.device("cpu"))


def toy_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One update on fixed numbers."""
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(state: LearnerState) -> dict[str, torch.Tensor]:
    """Everything in a state, unsharded."""
    found = {f"weight {name}": tensor for name, tensor in state.weights.items()}
    for name, tensor in state.weights.items():
        for key, value in state.optimizer.state[tensor].items():
            found[f"{key} {name}"] = value
    for version, weights in state.past_weights.items():
        found |= {f"version {version} {name}": tensor for name, tensor in weights.items()}
    return {
        k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone()
        for k, v in found.items()
    }


def rank(number: int, ranks: int, folder: Path, act: str) -> None:
    """One of `ranks` processes that hold the toy in shards: saves step_1, or loads it; rank 0 tells what."""
    address = f"file://{folder}/rendezvous-{act}"
    dist.init_process_group("gloo", init_method=address, rank=number, world_size=ranks)
    torch.set_num_threads(1)
    model, optimizer = toy()
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    past: dict[int, dict[str, torch.Tensor]] = {}
    state = toy_state(model, optimizer, past)
    config = PreTrainedConfig(hidden_size=6)
    if act == "save":
        toy_step(model, optimizer)
        past[1] = {name: p.detach().clone() for name, p in model.named_parameters()}
        toy_step(model, optimizer)
        saved = whole(state)
        writer = CheckpointWriter()
        writer.start(folder / "step_1", state, config, updates=2, version=2, beside=lambda f: None)
        toy_step(model, optimizer)  # while it is written
        writer.wait()
        try:
            writer.start(folder / "step_1", state, config, updates=3, version=3, beside=print)
        except CheckpointError as error:
            (folder / f"refused-{number}").write_text(str(error), encoding="utf-8")
    else:
        load(folder / "step_1", state, config, past_like=dict(model.named_parameters()))
        saved = whole(state)
    if number == 0:
        torch.save(saved, folder / f"{act}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    several_learners(
        [Path(p) for p in sys.argv[2:]], threads=2, deterministic=sys.argv[1] == "deterministic"
    )
    sys.stdout.flush()
    os._exit(0)
