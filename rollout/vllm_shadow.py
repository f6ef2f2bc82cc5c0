"""A vLLM worker's second model: takes new weights while the first one generates, then takes its place.

On a CPU the weights that a layer computes with are not its parameters: vLLM packs linear layers into oneDNN
or AMX handles, experts into the layout of a grouped kernel, MLA's projections into matrices of its own. So
neither can they be copied from one model to another, nor loaded in place without a pause as long as the
load. The shadow is a copy of the whole model that shares the KV caches and the settings: it loads through
vLLM's layer-wise reload, and a flip exchanges the two models by reference.

Refuses: weights that do not fill every layer. Left out: devices with captured graphs, which hold on to the
addresses of the weights.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import MethodType

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info


class Shadow:
    """The model that does not generate; `flip` makes it the one that does, and the other the shadow."""

    def __init__(self, model: nn.Module, config: VllmConfig) -> None:
        """Copies the weights of `model` once. Call it after the KV caches are there."""
        self.live = model
        self.config = config
        self.context = config.compilation_config.static_forward_context
        memo = self._shared() | {id(t): _copied(t) for t in _tensors(model)}
        self.model: nn.Module = copy.deepcopy(model, memo)
        # Attention and experts are looked up by name while the model runs.
        self.layers = {name: memo[id(layer)] for name, layer in self.context.items()}
        for own, other in zip(self.model.modules(), model.modules(), strict=True):
            known, info = get_layerwise_info(own), get_layerwise_info(other)
            known.restore_device = info.restore_device
            parameters, buffers = info.restore_metadata
            known.restore_metadata = (
                {name: _bound_to(_copied(t), memo) for name, t in parameters.items()},
                {name: _bound_to(_copied(t), memo) for name, t in buffers.items()},
            )
        for tensor in _tensors(self.model):
            _bound_to(tensor, memo)

    def begin(self) -> None:
        """Take the form in which weights are loaded, layer by layer."""
        for module in self.model.modules():
            # A layer of experts that has its kernel takes further weights for packed ones and computes
            # nonsense with them, without an error; without a kernel it packs them as on the first load.
            method = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None  # pyright: ignore[reportOptionalMemberAccess]
        initialize_layerwise_reload(self.model)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load some of the weights; a layer that has all of its own is converted."""
        self.model.load_weights(weights)  # pyright: ignore[reportCallIssue]

    def complete(self) -> None:
        """Convert what is left (attention). Raises RuntimeError naming a layer that lacks weights."""
        for name, module in self.model.named_modules():
            info = get_layerwise_info(module)
            parameters, _ = info.restore_metadata
            if not info.can_load() or not parameters or is_deferred_attention_layer(module):
                continue
            # The vocabulary is padded with rows that no checkpoint has.
            if info.load_numel == 0 or not isinstance(module, VocabParallelEmbedding):
                raise RuntimeError(
                    f"layer {name} got {info.load_numel} of its {info.load_numel_total} weights"
                )
        finalize_layerwise_reload(self.model, self.config.model_config)

    def flip(self) -> None:
        """Exchange the models. Whoever holds the live model, or looks a layer up, has the new weights."""
        self.live.__dict__, self.model.__dict__ = self.model.__dict__, self.live.__dict__
        for name, layer in self.layers.items():
            self.layers[name], self.context[name] = self.context[name], layer

    def _shared(self) -> dict[int, object]:
        """What both models refer to, as `copy.deepcopy` wants it: settings and KV caches."""
        shared = [self.config, *(getattr(self.config, field.name) for field in fields(self.config))]
        shared += [getattr(layer, "kv_cache", None) for layer in self.context.values()]
        for module in self.live.modules():
            shared += [v for v in vars(module).values() if isinstance(v, ProcessGroup)]
        return {id(one): one for one in shared}


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _bound_to(tensor: Tensor, twins: Mapping[int, object]) -> Tensor:
    """With its weight loaders unwrapped, and methods of the copied layers (twins: a layer's id -> its copy)."""
    for name, value in vars(tensor).items():
        loader = inspect.unwrap(value) if callable(value) else value
        if isinstance(loader, MethodType) and id(loader.__self__) in twins:
            loader = MethodType(loader.__func__, twins[id(loader.__self__)])
        vars(tensor)[name] = loader
    return tensor


def _copied(tensor: Tensor) -> Tensor:
    """A copy that keeps class and attributes (weight loaders)."""
    new = tensor.detach().clone()
    new.__class__ = tensor.__class__
    new.__dict__ = tensor.__dict__.copy()
    return new
