"""vLLM's weight-transfer API with a backend of ours: one safetensors file that every engine maps.

The learner writes the file once per host (in /dev/shm by default). vLLM's session of an update is spread
over time: each `update_weights` stages a slice of the file between two steps of the engine, without a pause,
and `finish_weight_update`, in a pause, makes the staged weights those that the engine generates with. Works
for every model that vLLM can load.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rollout.vllm_shadow import Shadow

BACKEND = "dorado_file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Load some tensors of a safetensors file in the published checkpoint format, or convert some layers.

    first: a new set of weights begins. converted: convert until so much of the model is done (1.0: all).
    """

    path: str
    names: list[str]
    first: bool = False
    converted: float = 0.0


class Staged(Protocol):
    """Weights on their way into a model; see `Shadow`."""

    def begin(self) -> None: ...
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...
    def convert(self, share: float) -> None: ...
    def swap(self) -> None: ...


class InPlace:
    """For devices with captured graphs, which keep the addresses of the weights: the load is in the swap.

    Holds the tensors of the file, mapped, not copied.
    """

    def __init__(self, model: nn.Module, config: VllmConfig) -> None:
        self.model = model
        self.config = config
        self.weights: list[tuple[str, Tensor]] = []

    def begin(self) -> None:
        """Forget an earlier file."""
        self.weights = []

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Remember them."""
        self.weights += weights

    def convert(self, share: float) -> None:
        """The swap converts."""

    def swap(self) -> None:
        """Load through vLLM's layer-wise reload, in place."""
        initialize_layerwise_reload(self.model)
        self.model.load_weights(self.weights)  # pyright: ignore[reportCallIssue]
        finalize_layerwise_reload(self.model, self.config.model_config)
        torch.accelerator.synchronize()
        self.weights = []


class FileWeightTransfer(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads a checkpoint file slice by slice, and opens it once: its header names every tensor."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    staged: Staged | None = None
    # Whether the model that generates is the one of before the last change (`generate_with`).
    on_older = False
    opened: "tuple[str, safe_open] | None" = None

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Nothing before the first slice."""

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Stage a slice. The base class would end in an accelerator call that a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Do this with the weights to come; those are given up where it fails.

        Raises RuntimeError where layers are to be converted and the weights do not fill the model.
        """
        self.generate_with(older=False)
        staged, self.staged = self.staged or self._new(), None
        opened, self.opened = self.opened, None
        if update_info.first:
            staged.begin()
        if update_info.names:
            if update_info.first or opened is None or opened[0] != update_info.path:
                opened = update_info.path, safe_open(update_info.path, framework="pt")
            staged.load([(name, opened[1].get_tensor(name)) for name in update_info.names])
        if update_info.converted:
            staged.convert(update_info.converted)
        # All of it is in the model then, and the file may go.
        self.staged, self.opened = staged, None if update_info.converted == 1.0 else opened

    def finish_weight_update(self) -> None:
        """Generate with the staged weights from now on."""
        assert self.staged is not None, "a file is staged before it is loaded"
        self.opened = None
        self.generate_with(older=False)
        self.staged.swap()

    def generate_with(self, *, older: bool) -> None:
        """Generate with the weights of before the last change, or with the newest ones again.

        The older ones are there until the next set of weights is staged.
        """
        if older != self.on_older:
            assert self.staged is not None, "there was a change of weights"
            self.staged.swap()
            self.on_older = older

    def shutdown(self) -> None:
        """Nothing to release."""

    def _new(self) -> Staged:
        kind = Shadow if self.device.type == "cpu" else InPlace
        return kind(self.model, self.vllm_config)
