"""AdamW on float32 master weights, whatever the dtype of the weights that the products use.

With float32 weights the two are the same tensors. With bfloat16 weights each gradient is added to a float32
one as soon as it is complete, and given up: small updates are not lost to rounding, nor are the later
micro-batches of a batch. Sharded weights (`trainer.parallel`) are float32 and are the masters.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from trainer.config import OptimConfig
from trainer.loss import PpoConfig
from trainer.parallel import ALONE, Ranks, local
from trainer.weights import working_dtype


class Optimizer:
    """One update at a time: backward passes, then `step`.

    updates: how far the schedule is; of several updates on a batch (`apply`) all have the same rate.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
        *,
        critic: PpoConfig | None = None,
    ) -> None:
        """The model comes in float32; its weights become `dtype`, those of the router excepted. critic: has
        the rate and the warm-up of a value head, where there is one.

        Only weights that require a gradient are updated, and have masters and optimizer state. With several
        ranks the model comes sharded over all of them, and `dtype` is float32.
        """
        self.config = config
        self.ranks = ranks
        for name, p in model.named_parameters():
            if not p.requires_grad:
                p.data = p.data.to(working_dtype(name, dtype))
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.masters = dict(self.weights)
        for name, p in self.weights.items():
            if (low := working_dtype(name, dtype)) != torch.float32:
                self.masters[name] = nn.Parameter(p.detach().clone())
                p.data = p.data.to(low)
                p.register_post_accumulate_grad_hook(_move_gradient_to(self.masters[name]))
        self.adam = torch.optim.AdamW(
            [
                {"params": group, "critic": of_critic}
                for of_critic in (False, True)
                for group in _by_mesh(
                    p for n, p in self.masters.items() if n.startswith("critic.") == of_critic
                )
            ],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.critic = critic
        self.updates = 0

    @property
    def lr(self) -> float:
        """The rate of the latest update."""
        return self.adam.param_groups[0]["lr"]

    def clip(self) -> float:
        """Clip the gradient to `max_grad_norm`; returns its norm before. One that is not finite is left as it
        is."""
        grads = [local(p.grad) for p in self.masters.values() if p.grad is not None]
        norm = self.ranks.norm(nn.utils.get_total_norm(grads))
        if not math.isfinite(norm.item()):
            return norm.item()
        scale = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
        return norm.item()

    def clip_finite(self, loss: float) -> tuple[float, str]:
        """Clip the gradient of this loss; returns its norm, and a sentence where norm or loss is not finite,
        else "". Such a gradient is dropped: it would stay in every later one."""
        norm = self.clip()
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                self.forget()
                return (
                    norm,
                    f"the {what} of update {self.updates} is {value}: the weights stay as they are",
                )
        return norm, ""

    def step(self) -> None:
        """Make one update, with which the schedule moves on."""
        self.apply()
        self.updates += 1

    def apply(self) -> None:
        """Update the weights at the schedule's rate, and forget the gradient. The schedule stands still."""
        for group in self.adam.param_groups:
            group["lr"] = self._lr(group["critic"])
        self.adam.step()
        self.forget()
        self.refresh()

    def _lr(self, of_critic: bool) -> float:
        """The rate of the next update, of a value head or of the policy."""
        usual = self.config.lr_at(self.updates)
        if self.critic is None:
            return usual
        if of_critic:
            return self.critic.critic_lr * usual / self.config.lr
        return 0.0 if self.updates < self.critic.critic_warmup else usual

    def forget(self) -> None:
        """Leave no gradient behind."""
        self.adam.zero_grad()

    @torch.no_grad()
    def refresh(self) -> None:
        """Give the weights the values of their masters."""
        for name, p in self.weights.items():
            if self.masters[name] is not p:
                p.copy_(self.masters[name])


def _by_mesh(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Groups that one fused update takes: weights that are sharded over the same mesh."""
    groups: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for p in weights:
        groups.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
    return list(groups.values())


def _move_gradient_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def move(p: Tensor) -> None:
        assert p.grad is not None, "called once the gradient is complete"
        if master.grad is None:
            master.grad = p.grad.float()
        else:
            master.grad += p.grad
        p.grad = None

    return move
