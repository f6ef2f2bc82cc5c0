"""vLLM's KV-connector API with a connector of ours: a request's KV cache moves to another engine as a file.

In: requests whose `kv_transfer_params` say where their cache goes should they move (`save`), where it lies
if they have moved (`load`, or ""), and the version of the engine they are sent to. Out: `cache_file`s.
Nothing is written for a request that stays. What cannot be loaded is computed again.

vLLM makes two of these per engine: one beside its scheduler, which decides, and one in its worker, which
copies. What was aborted is written at the start of the next step, before anything can overwrite its blocks,
so blocks are freed at once and nothing that waits for an idle engine has to wait for a file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from safetensors import SafetensorError
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.utils.math_utils import cdiv
from vllm.v1.request import RequestStatus

from rollout.cache_file import CacheFile

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

CONNECTOR = "dorado_cache"
logger = init_logger(__name__)


class CacheParams(TypedDict):
    """A request's message to the connector; paths of cache files."""

    save: str
    load: str
    version: int


@dataclass(frozen=True)
class Save:
    """Blocks to write, and the tokens they hold."""

    file: CacheFile
    version: int
    token_ids: Sequence[int]
    blocks: Sequence[int]


@dataclass(frozen=True)
class Load:
    """Blocks to fill with the file's blocks from `first` on."""

    file: CacheFile
    blocks: Sequence[int]
    first: int


@dataclass
class Copies(KVConnectorMetadata):
    """Copies that the worker has to make in one step."""

    saves: list[Save] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)


class CacheTransfer(KVConnectorBase_V1):
    """Writes the cache of a request that is interrupted to move; loads the cache of one that has moved."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        (group,) = kv_cache_config.kv_cache_groups
        spec = group.kv_cache_spec
        self._num_blocks = kv_cache_config.num_blocks
        self._block_size = spec.block_size
        self._layout = f"{len(group.layer_names)} layers, {spec.page_size_bytes} bytes a block"
        self._offers: dict[str, CacheParams] = {}
        self._matched: dict[str, tuple[int, int]] = {}
        self._copies = Copies()
        self._layers: dict[str, torch.Tensor] = {}
        self._failed: set[int] = set()

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a cache that is not handed over is computed again."""
        return False

    # Beside the scheduler.

    def on_new_request(self, request: "Request") -> None:
        """Note a cache that waits for this request."""
        params = request.kv_transfer_params
        if params and params["load"]:
            self._offers[request.request_id] = CacheParams(**params)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int, bool]:
        """Tokens that the request's file holds beyond those that this engine holds already."""
        offer = self._offers.get(request.request_id)
        if offer is None:
            return 0, False
        file = CacheFile(Path(offer["load"]))
        held = file.matched(request.all_token_ids, offer["version"], self._layout)
        self._matched[request.request_id] = (num_computed_tokens, held)
        return max(0, held - num_computed_tokens), False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """The request is admitted; its file, if of use, fills these blocks before the step begins."""
        offer = self._offers.pop(request.request_id, None)
        start, end = self._matched.pop(request.request_id, (0, 0))
        if offer is None or not num_external_tokens:
            return
        first, last = start // self._block_size, cdiv(end, self._block_size)
        file, (ids,) = CacheFile(Path(offer["load"])), blocks.get_block_ids()
        self._copies.loads.append(Load(file, ids[first:last], first))

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Where the request was aborted to move, have its blocks written; they are free at once."""
        self._offers.pop(request.request_id, None)
        self._matched.pop(request.request_id, None)
        params = request.kv_transfer_params
        if not params or request.status != RequestStatus.FINISHED_ABORTED:
            return False, None
        file = CacheFile(Path(params["save"]))
        version = file.accept()
        if version is None:
            return False, None
        # A step under way computes no token that is not counted here; the worker ends it first.
        held = min(request.num_computed_tokens, request.num_tokens)
        blocks = block_ids[: cdiv(held, self._block_size)]
        if blocks:
            self._copies.saves.append(Save(file, version, request.all_token_ids[:held], blocks))
        else:
            file.drop()
        return False, None

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        """Hand what has come together to the worker."""
        copies, self._copies = self._copies, Copies()
        return copies

    def reset_cache(self) -> bool:
        """The weights are about to change: no cache that waits is of use any more."""
        self._offers.clear()
        return True

    # In the worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Every layer's cache, by block; a kernel may cut the scheduler's blocks into smaller ones."""
        for name, cache in kv_caches.items():
            self._layers[name] = cache.unflatten(0, (self._num_blocks, -1))

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """A step begins; nothing has been overwritten yet."""
        assert isinstance(kv_connector_metadata, Copies)
        for save in kv_connector_metadata.saves:
            rows = {n: layer[list(save.blocks)].cpu() for n, layer in self._layers.items()}
            try:
                save.file.write(save.token_ids, rows, save.version, self._layout)
            except (OSError, SafetensorError) as error:
                logger.warning("a cache was not written: %s", error)
                save.file.drop()

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Fill blocks from files, before the forward pass; a file is used once."""
        copies = self._get_connector_metadata()
        assert isinstance(copies, Copies)
        for load in copies.loads:
            try:
                load.file.read(self._layers, load.blocks, load.first)
            except (OSError, SafetensorError) as error:
                logger.warning("a cache was not loaded: %s", error)
                self._failed.update(load.blocks)
            load.file.path.unlink(missing_ok=True)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose tokens the scheduler has computed again."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loaded before the forward pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Nothing is written for requests that stay."""

    def wait_for_save(self) -> None:
        """Written before the step."""
