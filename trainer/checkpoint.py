"""Checkpoints of a learner: written in the background, whole or not at all, and read on any number of ranks.

torch.distributed.checkpoint writes the tensors, one file per rank: weights, optimizer state, the weights of
earlier versions, random states. `trainer.checkpoint_folder` says what lies beside them and when a folder
counts as a checkpoint.

Earlier versions' weights are in it because a learner without them refuses samples of those versions, or would
give them other ratios than the run that was not interrupted. The learning rate follows from `updates`, and
the optimizer's settings come from the configuration. A parameter that is sharded has to be a DTensor.
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import async_save
from transformers import PreTrainedConfig

from trainer.checkpoint_folder import (
    MODEL,
    PARTIAL,
    RECORD,
    CheckpointError,
    Record,
    complete,
    make_room,
    read_record,
)

# Keys of a model's config that say where it came from and how it is stored, not what it computes.
_ORIGIN = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class LearnerState:
    """A learner's tensors, by name: what is saved, and what is loaded into, in place.

    weights: what the optimizer steps (float32), and the model's buffers, by the model's own names.
    past_weights: version -> weights under whatever names the learner keeps them.
    """

    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    past_weights: dict[int, dict[str, Tensor]]
    device: torch.device


class CheckpointWriter:
    """Writes one checkpoint at a time while its caller goes on.

    With several ranks, each has one and they call it together.
    """

    def __init__(self) -> None:
        # Collectives of a save run beside those of training, so they need a group of their own.
        self._group: dist.ProcessGroup | None = None
        self._rank = 0
        if dist.is_initialized():
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
            self._rank = dist.get_rank()
        self._saving: Future[Any] | None = None
        self._folder = Path()

    def start(
        self,
        folder: Path,
        state: LearnerState,
        config: PreTrainedConfig,
        *,
        updates: int,
        version: int,
        beside: Callable[[Path], object],
    ) -> None:
        """Copy the state and begin to write it; returns as soon as the state may change again.

        `beside(folder)` adds files to the folder of the model's config. Raises CheckpointError, also for
        the save before this one.
        """
        self.wait()
        partial = folder.with_name(folder.name + PARTIAL)
        self._prepare(folder, partial, config, beside)
        try:
            record = Record(
                model=_comparable(config),
                updates=updates,
                version=version,
                past_versions=sorted(state.past_weights),
            )
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            saving = async_save(
                _tensors(state) | _random_states(state.device, self._rank),
                storage_writer=_Writer(partial, folder, record),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except OSError as error:
            raise _not_written(folder, error) from error
        assert isinstance(saving, Future), "the writer stages before async_save returns"
        self._saving, self._folder = saving, folder

    def _prepare(
        self,
        folder: Path,
        partial: Path,
        config: PreTrainedConfig,
        beside: Callable[[Path], object],
    ) -> None:
        """Make the folder on rank 0, and tell the others whether it is there."""
        problem = ""
        if self._rank == 0:
            try:
                make_room(folder, partial)
                config.save_pretrained(partial / MODEL)
                beside(partial / MODEL)
            except OSError as error:
                problem = str(_not_written(folder, error))
            except CheckpointError as error:
                problem = str(error)
        if self._group is not None:
            told = [problem]
            dist.broadcast_object_list(told, src=0, group=self._group)
            problem = told[0]
        if problem:
            raise CheckpointError(problem)

    def wait(self) -> None:
        """Until the save in progress has ended. Raises CheckpointError where it failed."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
        # torch's CheckpointException is no Exception; it holds what each rank raised.
        except (CheckpointException, OSError, RuntimeError) as error:
            if self._rank == 0:
                shutil.rmtree(f"{self._folder}{PARTIAL}", ignore_errors=True)
            raise _not_written(self._folder, error) from error


class _Writer(FileSystemWriter):
    """torch's writer, which in the end makes the folder a checkpoint."""

    def __init__(self, partial: Path, folder: Path, record: Record) -> None:
        super().__init__(partial)
        self.partial, self.folder, self.record = partial, folder, record

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Called on rank 0 when every rank has written its file."""
        super().finish(metadata, results)
        complete(self.partial, self.folder, self.record)


def load(
    folder: Path,
    state: LearnerState,
    config: PreTrainedConfig,
    *,
    past_like: Mapping[str, Tensor],
) -> Record:
    """Read a checkpoint into the state, in place, and set this process's random states.

    past_like: a tensor of the same dtype and sharding for each name of `LearnerState.past_weights`. Raises
    CheckpointError naming the folder and the first thing that is of another model; then nothing has changed.
    """
    record = read_record(folder)
    _check_model(folder, record.model, _comparable(config))
    saved = _saved_tensors(folder)
    _check_weights(folder, saved, state.weights)
    targets = {n: _target(n, there, state.weights, past_like) for n, there in saved.items()}
    _read(folder, targets)
    _put(targets, state)
    _set_random_states(targets, state.device)
    return record


def read_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Read a checkpoint's weights alone, in place, in one process. Raises CheckpointError."""
    _check_weights(folder, _saved_tensors(folder), weights)
    _read(folder, {f"weights/{name}": tensor.detach() for name, tensor in weights.items()})


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and the buffers it stores, by name; a tensor of two names is there once."""
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def _tensors(state: LearnerState) -> dict[str, Tensor]:
    """The state under the names it has in a checkpoint, e.g. `optimizer/lm_head.weight/exp_avg`."""
    found = {f"weights/{name}": tensor.detach() for name, tensor in state.weights.items()}
    for name, tensor in state.weights.items():
        if tensor in state.optimizer.state:
            for key, value in state.optimizer.state[tensor].items():
                found[f"optimizer/{name}/{key}"] = value
    for version, weights in state.past_weights.items():
        found |= {f"past/{version}/{name}": tensor for name, tensor in weights.items()}
    return found


def _target(
    name: str, saved: Tensor, weights: Mapping[str, Tensor], past_like: Mapping[str, Tensor]
) -> Tensor:
    """Where to read a tensor of a checkpoint to: a weight itself, or memory sharded as its weight is."""
    kind, _, rest = name.partition("/")
    if kind == "weights":
        return weights[rest].detach()
    if kind == "past":
        return torch.empty_like(past_like[rest.partition("/")[2]], requires_grad=False)
    like = weights[rest.rpartition("/")[0]] if kind == "optimizer" else saved
    # An optimizer's count of steps has a shape of its own, and the same value on every rank.
    if like is saved or like.shape != saved.shape:
        return torch.empty_like(saved, device="cpu")
    return torch.empty_like(like, dtype=saved.dtype, requires_grad=False)


def _put(loaded: Mapping[str, Tensor], state: LearnerState) -> None:
    """Give the state what was loaded; the weights were loaded in place."""
    state.optimizer.state.clear()
    state.past_weights.clear()
    for name, tensor in loaded.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            weight, _, key = rest.rpartition("/")
            state.optimizer.state[state.weights[weight]][key] = tensor
        elif kind == "past":
            version, _, weight = rest.partition("/")
            state.past_weights.setdefault(int(version), {})[weight] = tensor


def _random_states(device: torch.device, rank: int) -> dict[str, Tensor]:
    """The states of the random streams of this rank's process, as bytes."""
    python = bytearray(json.dumps(random.getstate()).encode())
    found = {"torch": torch.get_rng_state(), "python": torch.frombuffer(python, dtype=torch.uint8)}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return {f"random/{rank}/{source}": state for source, state in found.items()}


def _set_random_states(loaded: Mapping[str, Tensor], device: torch.device) -> None:
    """A rank that the checkpoint does not know keeps its own."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    prefix = f"random/{rank}/"
    mine = {n.removeprefix(prefix): t for n, t in loaded.items() if n.startswith(prefix)}
    if "torch" in mine:
        torch.set_rng_state(mine["torch"])
    if "python" in mine:
        version, numbers, gauss = json.loads(bytes(mine["python"].tolist()))
        random.setstate((version, tuple(numbers), gauss))
    if "cuda" in mine and device.type == "cuda":
        torch.cuda.set_rng_state(mine["cuda"], device)


def _saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Name, shape and dtype of what is in a checkpoint, as tensors without memory."""
    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: torch.empty(one.size, dtype=one.properties.dtype, device="meta")
        for name, one in metadata.items()
        if isinstance(one, TensorStorageMetadata)
    }


def _read(folder: Path, targets: dict[str, Tensor]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            state_dict_loader.load(dict(targets), storage_reader=FileSystemReader(folder))
    except (CheckpointException, OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder} cannot be read: {_reason(error)}") from error


def _check_model(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("model_type", *sorted(saved.keys() & wanted.keys())):
        if saved[key] != wanted[key]:
            raise CheckpointError(
                f"{folder / RECORD}: a checkpoint of another model: {key} is {saved[key]!r} there and "
                f"{wanted[key]!r} here"
            )


def _check_weights(folder: Path, saved: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    there = {n.removeprefix("weights/"): t for n, t in saved.items() if n.startswith("weights/")}
    for name in sorted(there.keys() | wanted.keys()):
        shapes = [tuple(w[name].shape) if name in w else "missing" for w in (there, wanted)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{folder}: a checkpoint of another model: {name} is {shapes[0]} there and "
                f"{shapes[1]} here"
            )


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """Select the part of a model's config that decides what it computes, as JSON gives it back."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _ORIGIN}


def _not_written(folder: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} could not be written: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The cause in one line: the operating system's where there is one, else the first rank's."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]
