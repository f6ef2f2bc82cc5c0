"""Steers the experts' load through the updates on a batch: losses of the routers, and their biases.

In: micro-batches just scored. Out: losses to add to the objective, and a watch with the batch's loads, by
which the biases move once per batch. A policy without routers has the hidden z-loss at most.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.batch import PackedBatch
from trainer.config import RouterConfig
from trainer.moe.balance import (
    BiasController,
    Experts,
    RouterWatch,
    experts_of,
    hidden_z_loss,
    loads,
)
from trainer.passes import Passes
from trainer.sample import TrainSample


class RouterSteering:
    """The routers of one policy. experts: None for a policy without any. biases: where they are moved."""

    def __init__(self, passes: Passes, config: RouterConfig) -> None:
        """Raises ValueError where the settings do not fit the policy's routers."""
        self.passes, self.config = passes, config
        self.record = passes.scorer.routing_record
        self.record.replay = config.replay
        self.experts: Experts | None = None
        self.biases: BiasController | None = None
        routers = passes.scorer.routers
        if routers:
            self.experts = experts_of(passes.scorer.model.config, config.experts_per_token)
            if config.bias_rate:
                self.biases = BiasController(routers, self.experts, config)

    def watch(self) -> RouterWatch | None:
        """A watch over the updates on a batch."""
        if self.experts is None:
            return None
        return RouterWatch(len(self.passes.scorer.routers), self.experts, self.config)

    def plan(self, watch: RouterWatch | None, samples: Sequence[TrainSample]) -> None:
        """Before an update on these samples. With a balance loss they are scored once more for their loads,
        since a micro-batch's own are not theirs."""
        if watch is None or self.experts is None or not self.config.balance_weight:
            return
        counts_LE = torch.zeros_like(watch.counts_LE)
        with torch.no_grad():
            for batch in self.passes.micro_batches(samples):
                self.passes.score(batch)
                if batch.num_tokens:
                    counts_LE += loads(self.record, self.experts.total)
        self.passes.ranks.add_up([counts_LE])
        watch.plan(counts_LE, sum(len(s.token_ids) for s in samples))

    def losses(self, watch: RouterWatch | None, batch: PackedBatch, all_tokens: int) -> Tensor:
        """The balance and the z-loss of the micro-batch that was just scored, weighted."""
        loss = torch.zeros((), device=self.passes.device)
        if not batch.num_tokens:
            return loss
        if watch is not None:
            loss = loss + watch.note(self.record, batch.num_tokens / all_tokens)
        if self.config.z_weight:
            [hidden_TD] = self.passes.scorer.before_norm
            z_loss = hidden_z_loss(hidden_TD[0], self.record.copies_T)
            loss = loss + self.config.z_weight * z_loss / all_tokens
        return loss

    def steer(self, watch: RouterWatch | None, batch: int) -> None:
        """After the updates on a batch, which counts from 0: its loads, and the biases moved by them."""
        if watch is None:
            return
        self.passes.ranks.add_up(watch.tensors())
        if self.biases is not None:
            self.biases.update(watch.counts_LE, batch)
