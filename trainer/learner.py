"""The learner: holds the policy being trained, applies updates, gives out weights.

Plain torch in one process; `rl` places it in a Ray actor. Consumes lists of `TrainSample`, produces a
new policy version per `step` and a dict of metrics. Shapes: see `trainer.batch`; V vocabulary.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trainer.batch import PackedBatch, pack, plan_rows
from trainer.config import LearnerConfig
from trainer.loss import LOSSES, LossInputs
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.weights import snapshot, write_checkpoint, write_weights

# Logits of this many tokens exist at once: (LOGIT_CHUNK, V) instead of (N, V).
LOGIT_CHUNK = 4096


class Scorer(nn.Module):
    """A policy that answers with the log-prob and the entropy of each policy token, both (N,)."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        hidden_RLD = self.model.model(  # pyright: ignore[reportCallIssue]
            input_ids=batch.input_ids_RL,
            position_ids=batch.position_ids_RL,
            attention_mask=batch.attention_mask(),
            use_cache=False,
        ).last_hidden_state
        hidden_ND = hidden_RLD[batch.row_N, batch.column_N]
        parts = []
        for hidden, target in zip(
            hidden_ND.split(LOGIT_CHUNK), batch.target_N.split(LOGIT_CHUNK), strict=True
        ):
            parts.append(
                checkpoint(self._score, hidden, target, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._score(hidden, target)
            )
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(self, hidden_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = self.model.lm_head(hidden_ND).float() / self.temperature  # pyright: ignore
        all_NV = logits_NV.log_softmax(dim=-1)
        entropy_N = -(all_NV.detach().exp() * all_NV.detach()).sum(-1)
        return all_NV.gather(1, target_N[:, None])[:, 0], entropy_N


class Learner:
    """One policy, its optimizer, and the weights of the versions that samples may still come from."""

    def __init__(
        self,
        checkpoint: str | Path,
        config: LearnerConfig,
        *,
        temperature: float,
        keep_versions: int,
    ) -> None:
        """`keep_versions`: how many earlier versions' weights to keep for behaviour log-probs."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.config = config
        self.keep_versions = keep_versions
        self.device = torch.device(config.device)
        # Master weights and optimizer state stay float32; config.dtype is that of the products.
        self.scorer = Scorer(load_policy(checkpoint, torch.float32), temperature).to(self.device)
        self.scorer.train()
        self.optimizer = torch.optim.AdamW(
            self.scorer.parameters(),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
        )
        self.updates = 0
        self.version = 0
        self.past_weights: dict[int, dict[str, Tensor]] = {}

    @property
    def model(self) -> nn.Module:
        """transformers' model."""
        return self.scorer.model

    def step(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One optimizer update of the configured objective; the policy version grows by one.

        Metrics are per policy token of the batch unless their name says otherwise.
        """
        start = time.perf_counter()
        config = self.config.loss
        sums: dict[str, float] = defaultdict(float)
        tokens_S = torch.tensor([s.num_policy_tokens for s in samples], device=self.device)
        behaviour_seconds = 0.0
        for batch in self._micro_batches(samples):
            before = time.perf_counter()
            past_N = self._past_logprobs(batch)
            behaviour_seconds += time.perf_counter() - before
            logprobs_N, entropy_N = self._score(batch)
            present_N = batch.versions_N == self.version
            past_N = torch.where(present_N, logprobs_N.detach(), past_N)
            inputs = LossInputs(
                learner_logprobs_N=logprobs_N,
                behaviour_logprobs_N=(
                    past_N if config.behaviour == "learner" else batch.rollout_logprobs_N
                ),
                rollout_logprobs_N=batch.rollout_logprobs_N,
                advantages_N=batch.advantages_N,
                sample_tokens_N=tokens_S[batch.sample_N],
                num_samples=len(samples),
            )
            loss, metrics = LOSSES[config.kind](inputs, config)
            loss.backward()
            comparable_N = ~past_N.isnan()
            gap_N = (past_N - batch.rollout_logprobs_N).abs()[comparable_N]
            sums["loss"] += loss.item()
            sums["entropy"] += entropy_N.sum().item()
            sums["gap"] += gap_N.sum().item()
            sums["compared"] += gap_N.numel()
            for name, value in metrics.items():
                sums[name] += value.item()
        grad_norm = self._update(remember=True)
        num_tokens = int(tokens_S.sum())
        gap, compared = sums.pop("gap"), sums.pop("compared")
        return {
            "loss/loss": sums.pop("loss"),
            "loss/entropy": sums.pop("entropy") / num_tokens,
            **{name: value / num_tokens for name, value in sums.items()},
            "parity/mean_abs_dlogp": gap / compared if compared else math.nan,
            "parity/tokens": compared,
            "optim/grad_norm": grad_norm,
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "time/behaviour_seconds": behaviour_seconds,
            "time/step_seconds": time.perf_counter() - start,
            "learner/policy_tokens": float(num_tokens),
            "learner/tokens": float(sum(len(s.token_ids) for s in samples)),
        }

    def imitate(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One supervised update: mean negative log-likelihood of the policy's tokens."""
        num_tokens = sum(s.num_policy_tokens for s in samples)
        total = 0.0
        for batch in self._micro_batches(samples):
            logprobs_N, _ = self._score(batch)
            loss = -logprobs_N.sum() / num_tokens
            loss.backward()
            total += loss.item()
        return {"sft/loss": total, "optim/grad_norm": self._update(remember=False)}

    @torch.no_grad()
    def logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probs of each sample's policy tokens under the present weights."""
        found: list[list[float]] = [[] for _ in samples]
        for batch in self._micro_batches(samples):
            values_N, _ = self._score(batch)
            for index, value in zip(batch.sample_N.tolist(), values_N.tolist(), strict=True):
                found[index].append(value)
        return found

    def snapshot(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The present weights as the engines take them, in memory of their own: the learner may go on."""
        return snapshot(self.model, dtype)

    def publish(self, path: Path, dtype: torch.dtype) -> int:
        """Write the present weights for the engines. Returns the file's size in bytes."""
        return write_weights(self.snapshot(dtype), path)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder of the present weights (without the tokenizer)."""
        write_checkpoint(self.model, folder, torch.float32)

    def _micro_batches(self, samples: Sequence[TrainSample]) -> Iterator[PackedBatch]:
        """Packed rows; samples of one version stay together, so that each batch is scored again under
        as few past versions as can be."""
        by_version: dict[int, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            by_version[min(sample.policy_versions, default=self.version)].append(index)
        size = self.config.micro_batch_rows
        for indices in by_version.values():
            lengths = [len(samples[i].token_ids) for i in indices]
            rows = [[indices[j] for j in r] for r in plan_rows(lengths, self.config.row_tokens)]
            for start in range(0, len(rows), size):
                yield pack(samples, rows[start : start + size]).to(self.device)

    @torch.no_grad()
    def _past_logprobs(self, batch: PackedBatch) -> Tensor:
        """(N,): the log-prob of each token under the version that wrote it, NaN for the present one
        (the training pass gives it) and where no weights were kept."""
        past_N = torch.full_like(batch.rollout_logprobs_N, math.nan)
        if self.config.loss.behaviour == "engine":
            return past_N
        for version in sorted(set(batch.versions_N.tolist()) - {self.version}):
            if version not in self.past_weights:
                raise ValueError(
                    f"a sample of version {version} came when the weights of "
                    f"{sorted(self.past_weights)} and {self.version} are kept"
                )
            values_N = self._score(batch, self.past_weights[version])[0]
            past_N = torch.where(batch.versions_N == version, values_N, past_N)
        return past_N

    def _score(
        self, batch: PackedBatch, weights: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        low = self.config.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            if weights is None:
                return self.scorer(batch)
            return functional_call(self.scorer, weights, (batch,))

    def _update(self, *, remember: bool) -> float:
        """Clip, step, zero. With `remember`, a new policy version begins."""
        optim = self.config.optim
        norm = nn.utils.clip_grad_norm_(self.scorer.parameters(), optim.max_grad_norm).item()
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient norm of update {self.updates} is {norm}")
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr_at(self.updates)
        if remember:
            if self.keep_versions:
                self.past_weights[self.version] = {
                    name: p.detach().clone() for name, p in self.scorer.named_parameters()
                }
            self.version += 1
            self.past_weights.pop(self.version - self.keep_versions - 1, None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return norm
