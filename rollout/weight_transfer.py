"""vLLM's weight-transfer API with a backend of ours: one safetensors file that every engine maps.

The learner writes the file once per host (in /dev/shm by default); each engine loads it through vLLM's
layer-wise reload, in place, while its requests wait. Works for every model that vLLM can load.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

BACKEND = "dorado_file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """path: a safetensors file in the published checkpoint format."""

    path: str


class FileWeightTransfer(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads a whole checkpoint file per update."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Let vLLM take its loading form again, layer by layer."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, object]) -> None:
        """Load the file. The base class would end in an accelerator call that a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load every tensor of the file into the model. Raises RuntimeError where one is missing."""
        self.model.load_weights(_tensors(update_info.path))  # pyright: ignore[reportCallIssue]

    def finish_weight_update(self) -> None:
        """Process the layers, then pack the experts again.

        On CPU the expert weights are packed for the grouped kernel on the first load only; a reload
        leaves unpacked weights in the packed place, and the experts compute nonsense without an error.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type != "cpu":
            return
        for module in self.model.modules():
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            experts = getattr(kernel, "fused_experts", None)
            if experts is not None:
                experts.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing to release."""


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
            yield name, file.get_tensor(name)
