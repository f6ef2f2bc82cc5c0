"""The learner over several ranks: who they are, and how a policy is sharded over them.

FSDP2 shards every weight over all ranks: dense ones flat, and with expert parallelism the routed experts by
expert over the mesh dimension `ep` first (`trainer.moe.exchange`) and then over `dp`. So each element of a
weight, of its gradient and of its optimizer state is on exactly one rank, in float32; products use `dtype`.
Gradients are summed, not averaged: a loss divides by counts of the whole batch.

One rank needs no process group: `ALONE` answers for itself.
"""

import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainer.moe.experts import GroupedExperts
from trainer.weights import working_dtype

S = TypeVar("S", bound=Sized)


@dataclass(frozen=True)
class Ranks:
    """The learner's ranks, as one of them sees them: it is number `rank` of `count`.

    mesh: all of them as ("dp", "ep"), neighbours in "ep"; None where there is one.
    """

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks, which all give the same names."""
        if self.mesh is None:
            return dict(values)
        names = sorted(values)
        sums = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(sums)
        return dict(zip(names, sums.tolist(), strict=True))

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks, of which each may have names that another lacks."""
        if self.mesh is None:
            return dict(values)
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, dict(values))
        names = dict.fromkeys(name for one in every for name in one)
        return {name: sum(one.get(name, 0.0) for one in every) for name in names}

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sums over the ranks, in place."""
        if self.mesh is not None:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def greatest(self, tensors: Sequence[Tensor]) -> None:
        """Maxima over the ranks, in place."""
        if self.mesh is not None:
            for tensor in tensors:
                dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def norm(self, own: Tensor) -> Tensor:
        """The norm of all ranks' elements from that of this rank's."""
        if self.mesh is None:
            return own
        square = own.double().square()
        dist.all_reduce(square)
        return square.sqrt().to(own.dtype)

    def merged(self, found: Sequence[S]) -> list[S]:
        """Lists or arrays of which each is filled on one rank, and empty on the others."""
        if self.mesh is None:
            return list(found)
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, list(found))
        return [max(lists, key=len) for lists in zip(*every, strict=True)]


ALONE = Ranks()


def open_store(host: str) -> TCPStore:
    """Where ranks meet: served by this process on a free port of `host`."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def reach_store(meeting: str) -> TCPStore:
    """The store that another rank serves at host:port."""
    host, _, port = meeting.rpartition(":")
    return TCPStore(host, int(port), is_master=False)


def join(
    store: TCPStore,
    *,
    rank: int,
    count: int,
    expert_parallel: int,
    device: str,
    seconds: float,
) -> Ranks:
    """Meet the other ranks. A collective that one of them does not come to fails after `seconds`."""
    if store.host == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=seconds),
    )
    shape = (count // expert_parallel, expert_parallel)
    return Ranks(rank, count, init_device_mesh(device, shape, mesh_dim_names=("dp", "ep")))


def shard(scorer: nn.Module, ranks: Ranks, dtype: torch.dtype) -> None:
    """Leave each rank a part of a float32 scorer, with or without memory; products become `dtype`.

    Raises ValueError where the policy's experts cannot be shared out.
    """
    assert ranks.mesh is not None, "one rank has nothing to share out"
    low, full = (
        MixedPrecisionPolicy(param_dtype=d, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for d in (dtype, torch.float32)
    )
    everyone = ranks.mesh._flatten("ranks")
    for weight in scorer.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(ranks.mesh.device_type)
    if ranks.mesh["ep"].size() > 1:
        for module in scorer.modules():
            if isinstance(module, GroupedExperts):
                module.share(ranks.mesh["ep"])
                fully_shard(module, mesh=ranks.mesh["dp"], mp_policy=low)
    for module in _of_full_precision(scorer, dtype):
        fully_shard(module, mesh=everyone, mp_policy=full)
    for layer in scorer.model.model.layers:  # pyright: ignore
        fully_shard(layer, mesh=everyone, mp_policy=low)
    # The root too gives its weights up after a forward pass: the next one may be of another version.
    fully_shard(scorer, mesh=everyone, mp_policy=low, reshard_after_forward=True)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(scorer, FSDPModule), "it was just made one"
    # A rank may have no row for an expert layer; the others' gradients are summed all the same.
    scorer.set_reduce_scatter_unused_params(True)


def materialise(scorer: nn.Module, device: torch.device) -> None:
    """Give a sharded scorer memory on its device. What has values keeps them; the rest is for its reader."""
    named = (*scorer.named_parameters(), *scorer.named_buffers())
    kept = {name: local(t).detach().clone() for name, t in named if not t.is_meta}
    scorer.to_empty(device=device)
    with torch.no_grad():
        for name, t in (*scorer.named_parameters(), *scorer.named_buffers()):
            if name in kept:
                local(t).copy_(kept[name])


def _of_full_precision(scorer: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """The outermost modules whose weights stay float32 though the others' become `dtype`."""
    found: dict[str, nn.Module] = {}
    for name, module in scorer.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and working_dtype(f"{name}.", dtype) != dtype:
            found[name] = module
    return list(found.values())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory; a tensor that is not sharded, as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
@torch.no_grad()
def exchanged(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a sharded model has these weights, by name and sharded as its own, in place of its own."""
    own = {name: local(t) for name, t in model.state_dict().items() if name in weights}
    kept = {name: t.clone() for name, t in own.items()}
    for name, t in own.items():
        t.copy_(local(weights[name]))
    try:
        yield
    finally:
        for name, t in own.items():
            t.copy_(kept[name])
