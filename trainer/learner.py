"""The learner: holds the policy being trained, applies updates, gives out weights.

Plain torch in one process, or in several that hold a part of the policy each (`trainer.parallel`); `rl`
places them in Ray actors. Consumes lists of `TrainSample`, produces a new policy version per `step`, and
metrics. Several ranks are called together with the same arguments: each computes its share of the samples,
and all give the answer of one rank alone. Shapes: see `trainer.batch`; V vocabulary.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.advantage import BATCH_ADVANTAGES, CRITIC_ADVANTAGES
from trainer.agreement import check_agreement, probe_sample
from trainer.batch import PackedBatch, pack
from trainer.batch_updates import BatchUpdates, Training
from trainer.checkpoint import CheckpointWriter, LearnerState, load, named_weights
from trainer.config import LearnerConfig
from trainer.cpu.allocator import keep_freed_memory
from trainer.cpu.row_kernel import compile_kernels
from trainer.critic import Targets, turn_targets, with_advantages
from trainer.determinism import make_deterministic
from trainer.distillation import load_teachers
from trainer.lora import add_adapters
from trainer.loss import PpoConfig, loss_of
from trainer.moe.steering import RouterSteering
from trainer.normalisation import normalised
from trainer.optimizer import Optimizer
from trainer.parallel import ALONE, Ranks, materialise, shard
from trainer.passes import Passes
from trainer.policy import fill_policy, load_policy, outline_policy
from trainer.reference import Reference, weights_of
from trainer.sample import TrainSample
from trainer.sample_check import SetAside, check_samples
from trainer.scorer import Scorer
from trainer.step_result import StepResult
from trainer.turn_advantage import BATCH_TURN_ADVANTAGES
from trainer.weights import (
    published_weights,
    snapshot,
    working_dtype,
    write_adapter,
    write_adapter_config,
    write_checkpoint,
)

# The pass that has the kernels compiled: rows enough for each of them in a narrow policy.
WARM_UP_SAMPLES, WARM_UP_TOKENS = 64, 64


def _prepare_process(config: LearnerConfig) -> None:
    """Set what holds for the whole process."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        make_deterministic()
    if config.device == "cpu":
        keep_freed_memory()


class Learner:
    """One policy, its optimizer, and of the versions that samples may still come from the trained weights."""

    def __init__(
        self,
        checkpoint: str | Path,
        config: LearnerConfig,
        *,
        temperature: float,
        keep_versions: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """`keep_versions`: how many earlier versions' weights to keep for behaviour log-probs.

        Raises ValueError where the policy cannot be shared out over the ranks, or nothing can compile, and
        Unsupported where the learner would compute another function than the policy's own code.
        """
        _prepare_process(config)
        self.config = config
        self.keep_versions = keep_versions
        self.device = torch.device(config.device)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.ranks = ranks
        critic = config.critic if loss_of(config.loss.kind).critic else None
        of_critic = config.loss.loss_settings if critic else None
        assert of_critic is None or isinstance(of_critic, PpoConfig), "a loss with a critic"
        fixed: dict[str, Tensor] = {}
        if ranks.count == 1:
            policy = load_policy(checkpoint, torch.float32)
            if config.lora is not None:
                add_adapters(policy, config.lora)
            self.scorer = Scorer(
                policy, temperature, critic=critic, float32_head=config.float32_head
            )
            self.scorer.to(self.device)
            self.scorer.train()
            check_agreement(self.scorer, config.micro_batch_tokens)
            self.optimizer = Optimizer(self.scorer, config.optim, self.dtype, critic=of_critic)
        else:
            self.scorer = Scorer(
                outline_policy(checkpoint),
                temperature,
                critic=critic,
                float32_head=config.float32_head,
            )
            check_agreement(self.scorer, config.micro_batch_tokens)
            shard(self.scorer, ranks, self.dtype)
            materialise(self.scorer, self.device)
            kl = config.loss.kl
            if kl is not None and kl.reference != "start":
                fill_policy(self.model, kl.reference)
                fixed = self._present_weights()
            fill_policy(self.model, checkpoint)
            self.optimizer = Optimizer(
                self.scorer, config.optim, torch.float32, ranks, critic=of_critic
            )
        self.scorer.train()
        if config.recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
        if config.compile:
            compile_kernels(self.device)
        self.passes = Passes(self.scorer, config, ranks)
        self.steering = RouterSteering(self.passes, config.router)
        self.training = Training(config, self.passes, self.optimizer, self.steering)
        self.version = 0
        self.past_weights: dict[int, dict[str, Tensor]] = {}
        self.reference = self._reference(fixed)
        self.teachers = load_teachers(config, temperature, ranks)
        self.writer = CheckpointWriter()
        self.set_aside = SetAside()
        if config.compile:
            self._compile()

    def _compile(self) -> None:
        """Let what is compiled be compiled now, while engines start, and not in the first step."""
        tokens = min(WARM_UP_TOKENS, self.config.micro_batch_tokens)
        count = min(WARM_UP_SAMPLES, self.config.micro_batch_tokens // tokens)
        samples = [probe_sample((0,) * tokens)] * count
        scores = self.scorer(pack(samples, range(count), self.device))
        # Gradients as a loss gives them: none is one number, spread out.
        found = scores.logprobs_N.square().sum()
        if self.config.loss.entropy_weight:
            found = found + scores.entropy_N.square().sum()
        found.backward()
        self.optimizer.forget()

    @property
    def model(self) -> nn.Module:
        """transformers' model."""
        return self.scorer.model

    def step(self, samples: Sequence[TrainSample]) -> StepResult:
        """Update by the configured objective, once or as `learner.updates` says; the policy version grows by
        one.

        Samples with a number that is not finite are set aside, and so is an update whose loss or gradient is
        not: without any other the new version has the weights of the one before. Metrics are per policy token
        of the updates unless their name says otherwise. Raises BadSample, and NotFinite after many such
        steps.
        """
        start = time.perf_counter()
        kept, fault = self.set_aside.samples(samples)
        few = 2 * len(kept) < len(samples)
        made, faults = 0, []
        if any(s.num_policy_tokens for s in kept) or not fault:
            check_samples(kept, self.config.micro_batch_tokens)
            result, faults, made = self._train(kept)
        else:
            self._begin_version()
            result, faults = StepResult({"parity/tokens": 0.0}), [fault]
        if made:
            self.set_aside.update(fault if few else "", partly=faults)
        else:
            self.set_aside.update(faults[0])
        metrics = {
            **result.metrics,
            "learner/policy_tokens": float(sum(s.num_policy_tokens for s in kept)),
            "learner/tokens": float(sum(len(s.token_ids) for s in kept)),
            "learner/samples_set_aside": float(len(samples) - len(kept)),
            "learner/updates_set_aside": float(len(faults)),
            "time/step_seconds": time.perf_counter() - start,
        }
        return replace(result, metrics=metrics)

    def _train(self, samples: Sequence[TrainSample]) -> tuple[StepResult, list[str], int]:
        """Update on samples that are fit for it, as `BatchUpdates.run` does."""
        samples, targets = self._estimated(samples)
        updates = BatchUpdates(
            self.training,
            samples,
            targets,
            version=self.version,
            past_weights=self.past_weights,
            reference=self.reference,
            teachers=self.teachers,
        )
        return updates.run(self._begin_version)

    def _estimated(
        self, samples: Sequence[TrainSample]
    ) -> tuple[Sequence[TrainSample], Sequence[Targets]]:
        """The batch with the advantages that are the learner's to compute, normalised, and the critic's
        targets."""
        samples, targets = self._with_advantages(samples)
        if self.config.normalise != "none":
            samples = normalised(samples, by_env=self.config.normalise == "environment")
        return samples, targets

    def _with_advantages(
        self, samples: Sequence[TrainSample]
    ) -> tuple[Sequence[TrainSample], Sequence[Targets]]:
        name = self.config.reward_advantage
        if name in BATCH_ADVANTAGES:
            if (discount := self.config.turn_discount) is not None:
                return BATCH_TURN_ADVANTAGES[name](samples, discount), ()
            return BATCH_ADVANTAGES[name](samples), ()
        if name not in CRITIC_ADVANTAGES:
            return samples, ()
        settings, advantage = self.config.loss.loss_settings, CRITIC_ADVANTAGES[name]
        assert isinstance(settings, PpoConfig), "a loss with a critic has its settings"
        values = self.passes.by_sample(samples, self._behaviour_values)
        targets = [
            turn_targets(s, v, settings, advantage) for s, v in zip(samples, values, strict=True)
        ]
        return [with_advantages(s, t) for s, t in zip(samples, targets, strict=True)], targets

    def _behaviour_values(self, batch: PackedBatch) -> Tensor:
        """(N,): the value at each token under the version that wrote it; the present version's where no
        weights are kept."""
        values_N = self.passes.values(batch)
        if self.config.loss.behaviour != "engine":
            for version in sorted(batch.versions & set(self.past_weights)):
                past_N = self.passes.values(batch, self.past_weights[version])
                values_N = torch.where(batch.versions_N == version, past_N, values_N)
        return values_N

    def sft_step(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One supervised update: mean negative log-likelihood of the policy's tokens.

        Set aside where loss or gradient is not finite; raises NotFinite after many such updates.
        """
        num_tokens = sum(s.num_policy_tokens for s in samples)
        all_tokens = sum(len(s.token_ids) for s in samples)
        total = 0.0
        watch = self.steering.watch()
        self.steering.plan(watch, samples)
        self.optimizer.forget()
        for batch in self.passes.micro_batches(samples):
            loss = -self.passes.logprobs(batch).sum() / num_tokens
            (loss + self.steering.losses(watch, batch, all_tokens)).backward()
            total += loss.item()
        total = self.ranks.total({"loss": total})["loss"]
        grad_norm, fault = self.optimizer.clip_finite(total)
        self.set_aside.update(fault)
        if not fault:
            self.optimizer.step()
            self.steering.steer(watch, self.optimizer.updates - 1)
        return {"sft/loss": total, "optim/grad_norm": grad_norm}

    def logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probs of each sample's policy tokens under the present weights."""
        return self.passes.by_sample(samples, self.passes.logprobs)

    def snapshot(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The present weights as the engines take them, in memory of their own: the learner may go on.

        Of several ranks rank 0 has them, and the others have helped to gather them.
        """
        if self.ranks.rank:
            self._help_to_gather(dtype)
            return {}
        return snapshot(self.model, dtype)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder of the present weights (without the tokenizer).

        Adapters are merged into them, and lie beside them as PEFT's folder `adapter`.
        """
        if self.ranks.rank:
            self._help_to_gather(torch.float32)
            return
        write_checkpoint(self.model, folder, torch.float32)
        if self.config.lora is not None:
            write_adapter(self.model, folder / "adapter", self.config.lora)

    def _help_to_gather(self, dtype: torch.dtype) -> None:
        """This rank's part in rank 0's reading of the whole weights."""
        for _ in published_weights(self.model, dtype):
            pass

    def save_state(
        self, folder: Path, beside: Callable[[Path], object] = lambda folder: None
    ) -> None:
        """Begin to write a checkpoint of everything the next step depends on; training may go on at once.

        `beside(folder)` adds files to its model's folder, such as the tokenizer. Raises CheckpointError,
        also where the save before this one failed.
        """

        def with_adapter(model: Path) -> None:
            beside(model)
            if self.config.lora is not None:
                write_adapter_config(self.model, model / "adapter", self.config.lora)

        self.writer.start(
            folder,
            self._state(),
            self.model.config,  # pyright: ignore[reportArgumentType]
            updates=self.optimizer.updates,
            version=self.version,
            beside=with_adapter,
        )

    def wait_saved(self) -> None:
        """Until the checkpoint in progress is whole. Raises CheckpointError where its save failed."""
        self.writer.wait()

    def load_state(self, folder: Path) -> None:
        """Go on from a checkpoint, as the learner that wrote it would have. Raises CheckpointError."""
        record = load(
            folder,
            self._state(),
            self.model.config,  # pyright: ignore[reportArgumentType]
            past_like=self._present_weights(),
        )
        self.optimizer.refresh()
        self.optimizer.updates, self.version = record.updates, record.version

    def _state(self) -> LearnerState:
        masters = {n.removeprefix("model."): p for n, p in self.optimizer.masters.items()}
        return LearnerState(
            weights=named_weights(self.model) | masters,
            optimizer=self.optimizer.adam,
            past_weights=self.past_weights,
            device=self.device,
        )

    def _reference(self, fixed: dict[str, Tensor]) -> Reference | None:
        """The reference of the KL, where there is one. fixed: its weights, where they have been read."""
        kl = self.config.loss.kl
        if kl is None:
            return None
        if kl.reference != "start" and not fixed:
            fixed = weights_of(kl.reference, self.scorer.state_dict())
        elif not kl.every and not fixed:
            fixed = self._present_weights()
        return Reference(kl.every, fixed)

    def _present_weights(self) -> dict[str, Tensor]:
        """A copy of what changes and scores depend on, as the products use it: weights and the routers' bias,
        or the adapters alone."""
        changing = self.optimizer.weights if self.config.lora else self.scorer.state_dict()
        return {
            name: t.detach().to(self._used_dtype(name, t), copy=True)
            for name, t in changing.items()
        }

    def _used_dtype(self, name: str, weight: Tensor) -> torch.dtype:
        """The dtype of a weight in a forward pass: of a sharded model the weights are the masters."""
        return weight.dtype if self.ranks.count == 1 else working_dtype(name, self.dtype)

    def _begin_version(self) -> None:
        """Before the weights change: keep those of the version that ends, and drop those too old to be
        needed."""
        ended = self.version
        self.version += 1
        reference = self.reference.version(self.version) if self.reference else None
        if self.keep_versions or ended == reference:
            self.past_weights[ended] = self._present_weights()
        oldest = self.version - self.keep_versions
        for version in [v for v in self.past_weights if v < oldest and v != reference]:
            del self.past_weights[version]
