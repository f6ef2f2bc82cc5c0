"""A vLLM worker's second model: takes new weights while the first one generates, then takes its place.

On a CPU the weights that a layer computes with are not its parameters: vLLM packs linear layers into oneDNN
or AMX handles, experts into the layout of a grouped kernel, MLA's projections into matrices of its own. So
neither can they be copied from one model to another, nor loaded in place without a pause as long as the
load. The shadow is a copy of the whole model that shares the KV caches and the settings. Each set of weights
goes into it as on a first load: parameters in the checkpoint's form, then every layer converted. (vLLM's
reload into layers that have been converted leaves experts unpacked, and they compute nonsense without an
error.) A swap exchanges the two models by reference.

Compiled code takes what its layers compute with from the model that it is called for, oneDNN's handles among
it, at each call: both models share it.

Refuses: weights that do not fill the model. Left out: devices with captured graphs, which hold on to the
addresses of the weights.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import (
    SKIP_TENSORS,
    CopyCounter,
    materialize_meta_tensor,
)
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

# What vLLM holds of a compiled module beside the module: the code.
_COMPILED = ("_compiled_callable", "aot_compiled_fn", "_bytecode_hook_handle", "_compiled_bytecode")


class Shadow:
    """The model that does not generate; `swap` makes it the one that does, and the other the shadow."""

    def __init__(self, model: nn.Module, config: VllmConfig) -> None:
        """Copies `model` but for its weights. Call it after the KV caches are there."""
        self.live = model
        self.config = config
        self.context = config.compilation_config.static_forward_context
        memo = {id(one): one for one in self._shared()}
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                # `begin` makes those anew that a checkpoint fills.
                memo[id(tensor)] = _empty() if name in _checkpoint_form(module) else _twin(tensor)
        self.model: nn.Module = copy.deepcopy(model, memo)
        for own, other in zip(self.model.modules(), model.modules(), strict=True):
            get_layerwise_info(own).restore_metadata = get_layerwise_info(other).restore_metadata
        # Attention and experts are looked up by name while the model runs.
        self.layers = {name: memo[id(layer)] for name, layer in self.context.items()}
        self.loaded = 0
        self.converted = 0

    def begin(self) -> None:
        """Take the checkpoint's form, as before a first load: fresh parameters, experts without a kernel."""
        for module in self.model.modules():
            for name, form in _checkpoint_form(module).items():
                fresh = restore_layer_refs(materialize_meta_tensor(form), module)
                module.register_parameter(name, fresh)  # pyright: ignore[reportArgumentType]
            method = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None  # pyright: ignore[reportOptionalMemberAccess]
        self.loaded = self.converted = 0

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load some of the weights."""
        with CopyCounter() as counter:
            self.model.load_weights(weights)  # pyright: ignore[reportCallIssue]
        self.loaded += counter.copied_numel

    def convert(self, share: float) -> None:
        """Convert layers until so much of the model is converted, attention last; 1.0 is all of it.

        Raises RuntimeError where the weights did not fill the model.
        """
        layers = sorted(self.model.modules(), key=is_deferred_attention_layer)
        if not self.converted:
            self.sizes = [sum(map(get_tensor_load_numel, _loadable(m))) for m in layers]
            if self.loaded < sum(self.sizes):
                raise RuntimeError(
                    f"there are {self.loaded:,} weights for the {sum(self.sizes):,} of the model"
                )
        while self.converted < len(layers) and (
            share == 1.0 or sum(self.sizes[: self.converted]) < share * sum(self.sizes)
        ):
            self._convert(layers[self.converted])
            self.converted += 1

    def swap(self) -> None:
        """Exchange the models. Whoever holds the live model, or looks a layer up, has the new weights."""
        self.live.__dict__, self.model.__dict__ = self.model.__dict__, self.live.__dict__
        for name, layer in self.layers.items():
            self.layers[name], self.context[name] = self.context[name], layer

    def _convert(self, module: nn.Module) -> None:
        """As vLLM's `process_weights_after_loading` does with each module."""
        method = getattr(module, "quant_method", None)
        if isinstance(method, QuantizeMethodBase):
            vars(module).pop("_already_called_process_weights_after_loading", None)
            method.process_weights_after_loading(module)
            if hasattr(module, "update_param_tp_status"):
                module.update_param_tp_status()  # pyright: ignore[reportCallIssue]
        if is_deferred_attention_layer(module):
            module.process_weights_after_loading(self.config.model_config.dtype)  # pyright: ignore

    def _shared(self) -> Iterator[object]:
        """Yield the objects that both models refer to: settings, KV caches, process groups."""
        yield self.config
        yield from (getattr(self.config, field.name) for field in fields(self.config))
        yield from (getattr(layer, "kv_cache", None) for layer in self.context.values())
        for module in self.live.modules():
            yield from (v for v in vars(module).values() if isinstance(v, ProcessGroup))
            if isinstance(module, TorchCompileWithNoGuardsWrapper):
                yield from (vars(module)[name] for name in _COMPILED if name in vars(module))


def _checkpoint_form(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that a checkpoint fills, as vLLM made them: without data, with their loaders."""
    return get_layerwise_info(module).restore_metadata[0]


def _loadable(module: nn.Module) -> Iterator[Tensor]:
    """Parameters that a checkpoint fills, without the rows that pad a vocabulary."""
    form = _checkpoint_form(module)
    for name, parameter in module.named_parameters(recurse=False):
        if name not in form and name not in SKIP_TENSORS:
            continue
        if isinstance(module, VocabParallelEmbedding) and name == "weight":
            yield parameter[: module.shard_indices.num_org_elements]
        else:
            yield parameter


def _twin(tensor: Tensor) -> Tensor:
    """A copy that keeps class and attributes."""
    new = tensor.detach().clone()
    new.__class__ = tensor.__class__
    vars(new).update(vars(tensor))
    return new


def _empty() -> Tensor:
    return nn.Parameter(torch.empty(0), requires_grad=False)
