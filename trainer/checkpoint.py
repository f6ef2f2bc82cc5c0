"""Checkpoints of a learner: written in the background, whole or not at all, and read on any number of ranks.

A checkpoint is a folder that torch.distributed.checkpoint writes, one file per rank, with three things
beside its tensors:

    step_40/__0_0.distcp, .metadata   weights, optimizer state, earlier versions' weights, random states
    step_40/model/                    config.json, and what the caller adds (the tokenizer)
    step_40/learner.json              `Record`: which model, how far it was; the size of every file

It is written as `step_40.partial` and renamed when all ranks have written and learner.json is on disk, so a
save that is killed at any moment leaves the checkpoints before it as they are, and `latest` passes it over.

Earlier versions' weights are in it because a learner without them refuses samples of those versions, or would
give them other ratios than the run that was not interrupted. The learning rate follows from `updates`, and
the optimizer's settings come from the configuration. A parameter that is sharded has to be a DTensor.
"""

import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from transformers import PreTrainedConfig

# Of the tensors' names and of learner.json; what reads them checks it.
SCHEMA = 1
RECORD = "learner.json"
MODEL = "model"
# Keys of a model's config that say where it came from and how it is stored, not what it computes.
_ORIGIN = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message is one sentence."""


@dataclass(frozen=True)
class LearnerState:
    """A learner's tensors, by name: what is saved, and what is loaded into, in place.

    weights: what the optimizer steps (float32), and the model's buffers, by the model's own names.
    past_weights: version -> weights under whatever names the learner keeps them. extra: state of the
    learner's controllers; tensors, or what JSON can hold.
    """

    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    past_weights: dict[int, dict[str, Tensor]]
    device: torch.device
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """learner.json, e.g. `{"schema": 1, "updates": 40, "version": 40, "past_versions": [39], …}`.

    model: the model's config. extra: the part of `LearnerState.extra` that is no tensor.
    files: size in bytes of every other file of the folder.
    """

    model: dict[str, Any]
    updates: int
    version: int
    past_versions: list[int]
    extra: dict[str, Any]
    files: dict[str, int] = field(default_factory=dict)
    schema: int = SCHEMA


class CheckpointWriter:
    """Writes one checkpoint at a time while its caller goes on.

    With several ranks, each has one and they call it together.
    """

    def __init__(self) -> None:
        # Collectives of a save run beside those of training, so they need a group of their own.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._rank = dist.get_rank() if dist.is_initialized() else 0
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
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            if self._rank == 0:
                _make_room(folder, partial)
                config.save_pretrained(partial / MODEL)
                beside(partial / MODEL)
            if self._group is not None:
                dist.barrier(self._group)
            record = Record(
                model=_comparable(config),
                updates=updates,
                version=version,
                past_versions=sorted(state.past_weights),
                extra={k: v for k, v in state.extra.items() if not isinstance(v, Tensor)},
            )
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            saving = dcp.async_save(
                _tensors(state) | _random_states(state.device, self._rank),
                storage_writer=_Writer(partial, folder, record),
                process_group=self._group,
                no_dist=self._group is None,
            )
        except OSError as error:
            raise _not_written(folder, error) from error
        assert isinstance(saving, Future), "the writer stages before async_save returns"
        self._saving, self._folder = saving, folder

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
                shutil.rmtree(f"{self._folder}.partial", ignore_errors=True)
            raise _not_written(self._folder, error) from error


class _Writer(FileSystemWriter):
    """torch's writer, which in the end makes the folder a checkpoint."""

    def __init__(self, partial: Path, folder: Path, record: Record) -> None:
        super().__init__(partial)
        self.partial, self.folder, self.record = partial, folder, record

    def finish(self, metadata: dcp.Metadata, results: list[list[Any]]) -> None:
        """Called on rank 0 when every rank has written its file."""
        super().finish(metadata, results)
        files = {str(name): path.stat().st_size for name, path in _files(self.partial)}
        text = json.dumps(asdict(self.record) | {"files": files}, indent=1)
        with (self.partial / RECORD).open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync(self.partial)
        self.partial.rename(self.folder)
        _sync(self.folder.parent)


def latest(folder: Path, say: Callable[[str], object]) -> Path | None:
    """The checkpoint of the highest step in a folder of checkpoints, or None; `say` hears of each broken one."""
    for _, path in sorted(_steps(folder), reverse=True):
        try:
            read_record(path)
        except CheckpointError as error:
            say(f"{error}; passed over")
        else:
            return path
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` checkpoints of the highest steps, which have to be whole to count."""
    whole = [path for _, path in sorted(_steps(folder)) if (path / RECORD).is_file()]
    for path in whole[: max(0, len(whole) - keep)]:
        # First the mark: what is left of a removal that is killed is no checkpoint.
        (path / RECORD).unlink()
        shutil.rmtree(path)


def read_record(folder: Path) -> Record:
    """What a checkpoint says of itself. Raises CheckpointError unless the folder is a whole checkpoint."""
    file = folder / RECORD
    if not file.is_file():
        what = "its save did not end" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder} is no checkpoint: {what} ({RECORD} is missing)")
    try:
        values = json.loads(file.read_text())
        schema = values["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}") from None
    if schema != SCHEMA:
        raise CheckpointError(f"{file} has schema {schema}, this version of Dorado reads {SCHEMA}")
    record = Record(**values)
    there = dict(_files(folder))
    for name, size in record.files.items():
        if name not in there:
            raise CheckpointError(f"{folder} is no whole checkpoint: {name} is missing")
        if there[name].stat().st_size != size:
            raise CheckpointError(
                f"{folder} is no whole checkpoint: {name} has {there[name].stat().st_size} bytes, "
                f"{size} were written"
            )
    return record


def load(
    folder: Path,
    state: LearnerState,
    config: PreTrainedConfig,
    *,
    past_like: Mapping[str, Tensor],
) -> Record:
    """Read a checkpoint into the state, in place, and set this process's random states.

    past_like: a tensor of the same sharding for each name of `LearnerState.past_weights`. Raises
    CheckpointError naming the folder and the first thing that is of another model; then nothing has changed.
    """
    record = read_record(folder)
    _check_model(folder, record.model, _comparable(config))
    saved = _saved_tensors(folder)
    _check_weights(folder, saved, state.weights)
    targets: dict[str, Tensor] = {}
    for name, there in saved.items():
        kind, _, rest = name.partition("/")
        like: Tensor | None = None
        if kind == "weights":
            targets[name] = state.weights[rest].detach()
            continue
        if kind == "optimizer":
            like = state.weights[rest.rpartition("/")[0]]
        elif kind == "past":
            like = past_like[rest.partition("/")[2]]
        # An optimizer's step count has a shape of its own, and the same value on every rank.
        sharded = like is not None and like.shape == there.shape
        targets[name] = (
            torch.empty_like(like, dtype=there.dtype, requires_grad=False)
            if sharded
            else torch.empty_like(there, device="cpu")
        )
    _read(folder, targets)
    _put(targets, state)
    state.extra.update(record.extra)
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
    found |= {f"extra/{k}": v for k, v in state.extra.items() if isinstance(v, Tensor)}
    return found


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
        elif kind == "extra":
            state.extra[rest] = tensor


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
        if isinstance(one, dcp.TensorStorageMetadata)
    }


def _read(folder: Path, targets: dict[str, Tensor]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(targets), storage_reader=FileSystemReader(folder))
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
    """What of a model's config decides what it computes, as JSON gives it back."""
    values = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if key not in _ORIGIN}


def _make_room(folder: Path, partial: Path) -> None:
    """Remove what earlier saves to this name left; a whole checkpoint stays, and is refused."""
    if (folder / RECORD).is_file():
        raise CheckpointError(f"checkpoint {folder} exists already; nothing was written")
    for broken in (folder, partial):
        if broken.is_dir():
            shutil.rmtree(broken)
    (partial / MODEL).mkdir(parents=True)


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The step_N of a folder, whole or not, and the saves that did not end."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := re.fullmatch(r"step_(\d+)(\.partial)?", path.name):
            yield int(found.group(1)), path


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
            yield path.relative_to(folder).as_posix(), path


def _sync(folder: Path) -> None:
    """Make a folder's entries outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
