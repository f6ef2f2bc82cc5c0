"""Fuses models from their folders into a new folder, tensor by tensor.

In: folders of models that began as one, and settings. Out: a folder that transformers, vLLM and `dorado
train` load, of the base's files, with its config and tokenizer, and fusion.json beside them. In memory is one
tensor of each model at a time, in float32. The folder gets its name when it is whole. Refused: what does not
fit together (`trainer.fusion.folder`), and weights that are not finite. Left out: adapters; merge them first.

Shapes: M models, X the tensor's own shape.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from trainer.checkpoint_files import FLOATS, INDEX, Stored
from trainer.fusion.config import FusionConfig
from trainer.fusion.deltas import (
    Merged,
    conflicts,
    dropped,
    generator,
    normalised,
    norms,
    sce,
    ties,
    weighted_sum,
)
from trainer.fusion.folder import ModelFolder, check_together, digest, open_folder
from trainer.fusion.report import FusionReport, TensorReport
from trainer.tensor_stream import DTYPES, NAMES, num_bytes, write_tensors
from trainer.weights import working_dtype

# What of the reference's folder a model needs beside its weights.
_BESIDE = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
_NOT_BESIDE = (INDEX, "fusion.json", "config.json")


class Fusion:
    """One fusion; `write` does it once."""

    def __init__(self, models: Sequence[Path], base: Path | None, config: FusionConfig) -> None:
        """Reads headers only. Raises ValueError with one sentence where the models cannot be fused so."""
        config.check(len(models), base=base is not None)
        self.config = config
        self.models = [open_folder(path) for path in models]
        self.base = None if base is None else open_folder(base)
        self.reference = self.models[0] if self.base is None else self.base
        check_together([self.reference, *self.models])
        # All but a head that some folders do not repeat, since it is tied to the embedding.
        shared = set(self.reference.tensors).intersection(*(one.tensors for one in self.models))
        tensors = {n: one for n, one in self.reference.tensors.items() if n in shared}
        self.reference = replace(self.reference, tensors=tensors)
        self.weights = config.weights_of(len(models))
        routers = [name for name in self.reference.tensors if _is_router(name)]
        if config.router != "average" and not routers:
            raise ValueError(
                f"router: {config.router}: {self.reference.path} has no router, so nothing reads it"
            )
        self._files = ExitStack()
        self._open: dict[Path, safe_open] = {}

    @property
    def stored(self) -> dict[str, Stored]:
        """The tensors of the result."""
        return {
            name: replace(one, dtype=self._dtype(name, one))
            for name, (_, one) in self.reference.tensors.items()
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of the result's weights."""
        return sum(map(num_bytes, self.stored.values()))

    def write(self, target: Path, told: Callable[[int, int], object]) -> FusionReport:
        """Write the fused model. `told(done, total)` is called after each tensor.

        Raises ValueError, or OSError of the disk; then nothing of the target's name is there.
        """
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            report = self._write(partial, told)
            partial.rename(target)
        finally:
            self._files.close()
            shutil.rmtree(partial, ignore_errors=True)
        return report

    def _write(self, folder: Path, told: Callable[[int, int], object]) -> FusionReport:
        stored, reports = self.stored, dict[str, TensorReport]()

        def make(name: str) -> Tensor:
            tensor, reports[name] = self._fused(name)
            told(len(reports), len(stored))
            return tensor.to(DTYPES[stored[name].dtype])

        files = self.reference.files
        for file, names in files.items():
            write_tensors(folder / file, {name: stored[name] for name in names}, make)
        if len(files) > 1:
            weight_map = {name: file for file, names in files.items() for name in names}
            index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        self._write_beside(folder)
        report = FusionReport(
            self.config.model_dump(),
            None if self.base is None else (str(self.base.path), digest(self.base)),
            tuple((str(one.path), digest(one)) for one in self.models),
            tuple(reports[name] for name in self.reference.tensors),
        )
        report.write(folder)
        return report

    def _write_beside(self, folder: Path) -> None:
        source = self.reference.path
        for file in sorted(source.iterdir()):
            wanted = file.suffix in _BESIDE or file.name.upper().startswith("LICENSE")
            if file.is_file() and wanted and file.name not in _NOT_BESIDE:
                shutil.copy(file, folder / file.name)
        config = dict(self.reference.config)
        if self.config.dtype is not None:
            config |= dict.fromkeys(config.keys() & {"torch_dtype"} | {"dtype"}, self.config.dtype)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    def _dtype(self, name: str, stored: Stored) -> str:
        if self.config.dtype is None or stored.dtype not in FLOATS:
            return stored.dtype
        return NAMES[working_dtype(name, getattr(torch, self.config.dtype))]

    def _fused(self, name: str) -> tuple[Tensor, TensorReport]:
        """A tensor of the result in float32, and its report."""
        if self.reference.tensors[name][1].dtype not in FLOATS:
            return self._copied(name)
        weights_M = torch.tensor(self.weights)
        if self.base is None:
            theta_MX = torch.stack([self._read(one, name) for one in self.models])
            how, found_X = self._without_base(name, theta_MX, weights_M)
            took = [float(w > 0) for w in _chosen(how, weights_M)]
            apart = norms(theta_MX - found_X).tolist()
            sizes = _size(theta_MX[0]), _size(found_X)
            return found_X, _report(name, found_X, how, sizes, apart, None, took)
        base_X = self._read(self.base, name)
        delta_MX = torch.stack([self._read(one, name) - base_X for one in self.models])
        apart, opposed = norms(delta_MX).tolist(), conflicts(delta_MX)
        how, merged = self._merged(name, delta_MX, weights_M)
        took = merged.took_MX.flatten(1).double().mean(1).nan_to_num().tolist()
        sizes = _size(base_X), _size(merged.delta_X)
        return base_X + merged.delta_X, _report(name, base_X, how, sizes, apart, opposed, took)

    def _without_base(self, name: str, theta_MX: Tensor, weights_M: Tensor) -> tuple[str, Tensor]:
        if isinstance(self.config.router, int) and _is_router(name):
            return f"model {self.config.router}", theta_MX[self.config.router - 1]
        return "average", weighted_sum(theta_MX, weights_M).delta_X

    def _merged(self, name: str, delta_MX: Tensor, weights_M: Tensor) -> tuple[str, Merged]:
        """The method's name for a tensor, and its merged task vector."""
        c = self.config
        if _is_router(name) and c.router != "method":
            if c.router == "base":
                return "base", Merged(torch.zeros_like(delta_MX[0]), delta_MX != delta_MX)
            if c.router != "average":
                chosen_M = torch.zeros(len(delta_MX)).index_fill_(
                    0, torch.tensor(c.router - 1), 1.0
                )
                merged = weighted_sum(delta_MX, chosen_M)
                took_MX = merged.took_MX * chosen_M.bool().view(-1, *(1,) * (delta_MX.dim() - 1))
                return f"model {c.router}", replace(merged, took_MX=took_MX)
            return "average", weighted_sum(delta_MX, weights_M)
        if c.normalise:
            delta_MX = normalised(delta_MX)
        delta_MX = dropped(delta_MX, c.dropped, generator(c.seed, name))
        if c.method == "ties":
            merged = ties(delta_MX, weights_M, c.kept)
        elif c.method == "sce":
            merged = sce(delta_MX, c.kept)
        else:
            merged = weighted_sum(delta_MX, weights_M)
        return c.method, replace(merged, delta_X=merged.delta_X * c.scale)

    def _copied(self, name: str) -> tuple[Tensor, TensorReport]:
        """A tensor of whole numbers, which has to be the same in every model."""
        found_X = self._get(self.reference, name)
        for one in self.models:
            if not torch.equal(self._get(one, name), found_X):
                raise ValueError(f"{one.path}: {name} is of whole numbers, and not the others'")
        took = [1.0] * len(self.models)
        return found_X, _report(name, found_X, "copied", (0.0, 0.0), [0.0] * len(took), None, took)

    def _read(self, model: ModelFolder, name: str) -> Tensor:
        found_X = self._get(model, name).to(torch.float32)
        if not found_X.isfinite().all():
            raise ValueError(f"{model.path}: {name} has numbers that are not finite")
        return found_X

    def _get(self, model: ModelFolder, name: str) -> Tensor:
        file = model.tensors[name][0]
        if file not in self._open:
            self._open[file] = self._files.enter_context(safe_open(file, framework="pt"))
        return self._open[file].get_tensor(name)


def _is_router(name: str) -> bool:
    """True for a router's weight and bias, such as `layers.0.mlp.router.e_score_correction_bias`."""
    return ".router." in name or ".gate." in name


def _chosen(how: str, weights_M: Tensor) -> list[float]:
    """The weights of the models that a tensor without a base is made of."""
    number = how.removeprefix("model ")
    if number == how:
        return weights_M.tolist()
    return [float(index == int(number) - 1) for index in range(len(weights_M))]


def _size(tensor_X: Tensor) -> float:
    return norms(tensor_X[None]).item()


def _report(
    name: str,
    like_X: Tensor,
    how: str,
    sizes: tuple[float, float],
    apart: Sequence[float],
    opposed: float | None,
    took: Sequence[float],
) -> TensorReport:
    """sizes: norms of the base and of what is merged."""
    return TensorReport(
        name, tuple(like_X.shape), how, sizes[0], tuple(apart), sizes[1], opposed, tuple(took)
    )
