"""Log-prob and entropy of tokens from hidden states, without all logits at once.

Shapes: N policy tokens, D model width, V vocabulary, C tokens of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from trainer.batch import PackedBatch
from trainer.cpu.row_kernel import RowKernel
from trainer.critic_config import CriticConfig
from trainer.families.family import Unsupported
from trainer.moe.router import share_record
from trainer.turn_critic import TurnCritic, make_critic

# Logits that exist at once, in elements: what stays in the CPU's last cache, or what a GPU is busy with.
LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
# Rows below which a product is slow.
MIN_ROWS = 128


@dataclass(frozen=True)
class LogitShape:
    """Makes logits of z, the products of hidden states and head: z scale / temperature, and with a softcap
    above 0 softcap tanh(z scale / softcap) / temperature."""

    temperature: float
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def divisor(self) -> float:
        """The last division, which a scale alone is part of."""
        return self.temperature if self.softcap else self.temperature / self.scale


def logit_shape(config: PreTrainedConfig, temperature: float) -> LogitShape:
    """The shape that a model's own code gives its logits: Cohere's `logit_scale`, Granite's `logits_scaling`
    (a divisor), the soft cap of Gemma 2 (arXiv 2408.00118)."""
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or 0.0
    return LogitShape(temperature, scale / divisor, softcap)


def _shaped(logits_CV: Tensor, shape: LogitShape) -> Tensor:
    logits_CV = logits_CV.float()
    if shape.softcap:
        logits_CV = shape.softcap * torch.tanh(logits_CV * (shape.scale / shape.softcap))
    return logits_CV / shape.divisor


@RowKernel
def _read_off(
    logits_CV: Tensor,
    target_C: Tensor,
    logprob_C: Tensor,
    entropy_C: Tensor,
    norm_C: Tensor,
    *,
    shape: LogitShape,
) -> None:
    logits_CV = _shaped(logits_CV, shape)
    top_C1 = logits_CV.amax(-1, keepdim=True)
    weights_CV = torch.exp(logits_CV - top_C1)
    sum_C1 = weights_CV.sum(-1, keepdim=True)
    norm_C1 = top_C1 + sum_C1.log()
    mean_C = (weights_CV * logits_CV).sum(-1) / sum_C1[:, 0]
    norm_C.copy_(norm_C1[:, 0])
    entropy_C.copy_(norm_C1[:, 0] - mean_C)
    logprob_C.copy_(logits_CV.gather(1, target_C[:, None])[:, 0] - norm_C1[:, 0])


@RowKernel
def _logits_gradient(
    logits_CV: Tensor, target_C: Tensor, norm_C: Tensor, grad_C: Tensor, *, shape: LogitShape
) -> None:
    """In place of the products: d logp / d logits = onehot(target) - softmax, times the shape's slope."""
    shaped_CV = _shaped(logits_CV, shape)
    probs_CV = torch.exp(shaped_CV - norm_C[:, None])
    onehot_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == target_C[:, None]
    gradient_CV = (onehot_CV.float() - probs_CV) * (grad_C[:, None] / shape.divisor)
    if shape.softcap:
        bent_CV = shaped_CV * (shape.divisor / shape.softcap)
        gradient_CV = gradient_CV * (1 - bent_CV * bent_CV) * shape.scale
    logits_CV.copy_(gradient_CV)


@RowKernel
def _both_gradients(
    logits_CV: Tensor,
    target_C: Tensor,
    norm_C: Tensor,
    grad_C: Tensor,
    entropy_C: Tensor,
    entropy_grad_C: Tensor,
    *,
    shape: LogitShape,
) -> None:
    """In place of the products: as `_logits_gradient`, with d H / d logits = -softmax (log softmax + H)."""
    shaped_CV = _shaped(logits_CV, shape)
    logprobs_CV = shaped_CV - norm_C[:, None]
    probs_CV = torch.exp(logprobs_CV)
    onehot_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == target_C[:, None]
    of_logprob_CV = (onehot_CV.float() - probs_CV) * grad_C[:, None]
    of_entropy_CV = -probs_CV * (logprobs_CV + entropy_C[:, None]) * entropy_grad_C[:, None]
    gradient_CV = (of_logprob_CV + of_entropy_CV) / shape.divisor
    if shape.softcap:
        bent_CV = shaped_CV * (shape.divisor / shape.softcap)
        gradient_CV = gradient_CV * (1 - bent_CV * bent_CV) * shape.scale
    logits_CV.copy_(gradient_CV)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(shape(hidden W^T))[target] and the entropy, chunked over tokens.

    The backward pass computes each chunk's logits again.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND, head_VD, target_N, shape):  # pyright: ignore
        size = max(MIN_ROWS, LOGITS[head_VD.device.type] // len(head_VD))
        results_3N = torch.empty(3, len(hidden_ND), device=hidden_ND.device)
        parts = (hidden_ND.split(size), target_N.split(size), results_3N.split(size, dim=1))
        for hidden_CD, target_C, results_3C in zip(*parts, strict=True):
            logits_CV = hidden_CD @ head_VD.t()
            _read_off(logits_CV, target_C, *results_3C, shape=shape)
        logprob_N, entropy_N, norm_N = results_3N
        ctx.save_for_backward(hidden_ND, head_VD, target_N, norm_N, entropy_N)
        ctx.shape, ctx.size = shape, size
        ctx.set_materialize_grads(False)
        return logprob_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N, entropy_grad_N):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_ND, head_VD, target_N, norm_N, entropy_N = ctx.saved_tensors
        if grad_N is None:
            grad_N = torch.zeros_like(norm_N)
        of_entropy = () if entropy_grad_N is None else (entropy_N, entropy_grad_N)
        gradient = _both_gradients if of_entropy else _logits_gradient
        dhidden_ND = torch.empty_like(hidden_ND)
        dhead_VD = None
        if ctx.needs_input_grad[1]:
            dhead_VD = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        rows = (hidden_ND, dhidden_ND, target_N, norm_N, grad_N, *of_entropy)
        for hidden_CD, dhidden_CD, *rows_C in zip(*(x.split(ctx.size) for x in rows), strict=True):
            logits_CV = hidden_CD @ head_VD.t()
            gradient(logits_CV, *rows_C, shape=ctx.shape)
            torch.mm(logits_CV, head_VD, out=dhidden_CD)
            if dhead_VD is not None:
                dhead_VD += logits_CV.t() @ hidden_CD
        return dhidden_ND, None if dhead_VD is None else dhead_VD.to(head_VD.dtype), None, None


def _end_dropout(model: nn.Module) -> None:
    """Set every rate of dropout, and of noise in routers, to 0: those of modules, and those of functions,
    which are numbers of their modules."""
    for module in model.modules():
        rates = [name for name, value in vars(module).items() if isinstance(value, float)]
        for name in rates:
            if (
                "drop" in name
                or "jitter" in name
                or (name == "p" and isinstance(module, nn.Dropout))
            ):
                setattr(module, name, 0.0)


@dataclass(frozen=True)
class Scores:
    """A policy's scores of each policy token, all (N,) float32, with gradient. values: a critic's, where
    there is one."""

    logprobs_N: Tensor
    entropy_N: Tensor
    values_N: Tensor | None


class Scorer(nn.Module):
    """A policy, and with `critic` a critic on it, that scores the policy tokens of packed batches.

    It is trained as it acts: without dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float,
        *,
        critic: CriticConfig | None = None,
        float32_head: bool = False,
    ) -> None:
        """float32_head: the logits are products in float32, whatever the dtype of the weights. Raises
        Unsupported for a model without one last norm and one head."""
        super().__init__()
        inner = getattr(model, "model", None)
        if not hasattr(inner, "norm") or not hasattr(model, "lm_head"):
            kind = model.config.model_type  # pyright: ignore[reportAttributeAccessIssue]
            raise Unsupported(
                f"the learner cannot train a policy of the family {kind}: {type(model).__name__} has no "
                "model.norm and lm_head, as the language models that it knows have"
            )
        _end_dropout(model)
        self.model = model
        self.shape = logit_shape(model.config, temperature)  # pyright: ignore[reportArgumentType]
        width = model.config.hidden_size  # pyright: ignore[reportAttributeAccessIssue]
        self.critic = None if critic is None else make_critic(critic, int(width))  # pyright: ignore
        self.detach = critic is not None and critic.detach
        self.float32_head = float32_head
        self.routers, self.routing_record = share_record(model)
        # Of the latest pass: the last hidden state before the final norm, (1, T, D).
        self.before_norm: list[Tensor] = []
        model.model.norm.register_forward_pre_hook(self._note_hidden)  # pyright: ignore

    def _note_hidden(self, module: nn.Module, arguments: tuple[Tensor]) -> None:
        self.before_norm[:] = arguments

    def hidden(self, batch: PackedBatch) -> Tensor:
        """(T, D): the last hidden state of the stream. Raises ValueError where its routing does not fit."""
        self._check(batch.routing_TLK)
        self.routing_record.begin(batch.routing_TLK, batch.copies_T)
        return self.model.model(  # pyright: ignore[reportCallIssue]
            input_ids=batch.input_ids_T[None],
            position_ids=batch.position_ids_T[None],
            use_cache=False,
            layout=batch.layout,
        ).last_hidden_state[0]

    def forward(self, batch: PackedBatch) -> Scores:
        """Empty for a batch without policy tokens. Raises ValueError where its routing does not fit."""
        hidden_TD = self.hidden(batch)
        hidden_ND = hidden_TD[batch.source_N]
        head = self.model.lm_head.weight  # pyright: ignore[reportAttributeAccessIssue]
        if self.float32_head:
            hidden_ND, head = hidden_ND.float(), head.float()
        logprobs_N, entropy_N = _TokenLogprobs.apply(  # pyright: ignore[reportGeneralTypeIssues]
            hidden_ND, head, batch.target_N, self.shape
        )
        return Scores(logprobs_N, entropy_N, self._values(hidden_TD, batch))

    def _values(self, hidden_TD: Tensor, batch: PackedBatch) -> Tensor | None:
        if self.detach:
            hidden_TD = hidden_TD.detach()
        if isinstance(self.critic, TurnCritic):
            return self.critic(hidden_TD, batch)
        return None if self.critic is None else self.critic(hidden_TD[batch.source_N])

    def _check(self, routing_TLK: Tensor | None) -> None:
        if routing_TLK is None or not self.routers:
            return
        found, wanted = tuple(routing_TLK.shape[1:]), (len(self.routers), self.routers[0].top_k)
        if found != wanted:
            raise ValueError(
                f"the samples' routing is of {found[0]} layers and {found[1]} experts per token, this model "
                f"has {wanted[0]} and {wanted[1]}: they are another model's"
            )
