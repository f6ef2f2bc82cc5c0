"""The learner: holds the policy being trained, applies updates, gives out weights.

Plain torch in one process, or in several that hold a part of the policy each (`trainer.parallel`); `rl`
places them in Ray actors. Consumes lists of `TrainSample`, produces a new policy version per `step`, and
metrics. Several ranks are called together with the same arguments: each computes its share of the samples,
and all give the answer of one rank alone. Shapes: see `trainer.batch`; V vocabulary.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.advantage import BATCH_ADVANTAGES, CRITIC_ADVANTAGES
from trainer.agreement import check_agreement
from trainer.batch import PackedBatch, pack
from trainer.behaviour import BehaviourPass
from trainer.checkpoint import CheckpointWriter, LearnerState, load, named_weights
from trainer.config import LearnerConfig
from trainer.cpu.allocator import keep_freed_memory
from trainer.cpu.row_kernel import compile_kernels
from trainer.critic import Targets, mean_error, turn_targets, value_inputs, with_advantages
from trainer.determinism import make_deterministic
from trainer.learning_meter import LearningMeter
from trainer.lora import add_adapters
from trainer.loss import LOSSES, PpoConfig, objective
from trainer.loss_inputs import LossInputs
from trainer.micro_batches import plan_micro_batches, plan_shared
from trainer.moe.balance import (
    BiasController,
    Experts,
    RouterWatch,
    experts_of,
    hidden_z_loss,
    loads,
)
from trainer.optimizer import Optimizer
from trainer.parallel import ALONE, Ranks, exchanged, materialise, shard
from trainer.policy import fill_policy, load_policy, outline_policy
from trainer.sample import TrainSample
from trainer.sample_check import SetAside, check_samples
from trainer.scorer import Scorer, Scores
from trainer.step_result import StepResult
from trainer.token_recorder import TokenRecorder
from trainer.turn_advantage import BATCH_TURN_ADVANTAGES
from trainer.weights import (
    published_weights,
    snapshot,
    working_dtype,
    write_adapter,
    write_adapter_config,
    write_checkpoint,
)


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
        critic = LOSSES[config.loss.kind].critic
        of_critic = config.loss.loss_settings if critic else None
        assert of_critic is None or isinstance(of_critic, PpoConfig), "a loss with a critic"
        if ranks.count == 1:
            policy = load_policy(checkpoint, torch.float32)
            if config.lora is not None:
                add_adapters(policy, config.lora)
            self.scorer = Scorer(policy, temperature, critic=critic)
            self.scorer.to(self.device)
            self.scorer.train()
            check_agreement(self.scorer, config.micro_batch_tokens)
            self.optimizer = Optimizer(self.scorer, config.optim, self.dtype, critic=of_critic)
        else:
            self.scorer = Scorer(outline_policy(checkpoint), temperature, critic=critic)
            check_agreement(self.scorer, config.micro_batch_tokens)
            shard(self.scorer, ranks, self.dtype)
            materialise(self.scorer, self.device)
            fill_policy(self.model, checkpoint)
            self.optimizer = Optimizer(
                self.scorer, config.optim, torch.float32, ranks, critic=of_critic
            )
        self.scorer.train()
        if config.recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore
        if config.compile:
            compile_kernels(self.device)
        self.scorer.routing_record.replay = config.router.replay
        # Samples that begin alike need not have been routed alike.
        self.sharing = not config.router.replay
        self.experts: Experts | None = None
        self.biases: BiasController | None = None
        if self.scorer.routers:
            self.experts = experts_of(self.model.config, config.router.experts_per_token)
            if config.router.bias_rate:
                self.biases = BiasController(self.scorer.routers, self.experts, config.router)
        self.version = 0
        self.past_weights: dict[int, dict[str, Tensor]] = {}
        self.writer = CheckpointWriter()
        self.set_aside = SetAside()

    @property
    def model(self) -> nn.Module:
        """transformers' model."""
        return self.scorer.model

    def step(self, samples: Sequence[TrainSample]) -> StepResult:
        """One optimizer update of the configured objective; the policy version grows by one.

        Samples with a number that is not finite are set aside, and so is an update whose loss or gradient is
        not: then the new version has the weights of the one before. Metrics are per policy token of the
        batch unless their name says otherwise. Raises BadSample, and NotFinite after many such updates.
        """
        start = time.perf_counter()
        kept, fault = self.set_aside.samples(samples)
        few = 2 * len(kept) < len(samples)
        if any(s.num_policy_tokens for s in kept) or not fault:
            check_samples(kept, self.config.micro_batch_tokens)
            result, failed = self._train(kept)
        else:
            self._begin_version()
            result, failed = StepResult({"parity/tokens": 0.0}), fault
        self.set_aside.update(failed or (fault if few else ""))
        metrics = {
            **result.metrics,
            "learner/policy_tokens": float(sum(s.num_policy_tokens for s in kept)),
            "learner/tokens": float(sum(len(s.token_ids) for s in kept)),
            "learner/samples_set_aside": float(len(samples) - len(kept)),
            "learner/updates_set_aside": float(bool(failed)),
            "time/step_seconds": time.perf_counter() - start,
        }
        return replace(result, metrics=metrics)

    def _train(self, samples: Sequence[TrainSample]) -> tuple[StepResult, str]:
        """Update on samples that are fit for it. Also returns the sentence on why the update was set aside,
        "" where it was not."""
        samples, targets = self._estimated(samples)
        sums: dict[str, float] = defaultdict(float)
        tokens_S = torch.tensor([s.num_policy_tokens for s in samples], device=self.device)
        num_tokens = int(tokens_S.sum())
        all_tokens = sum(len(s.token_ids) for s in samples)
        watch = self._watch(samples)
        meter = LearningMeter(samples, self.device)
        recorder = TokenRecorder(samples) if self.config.record_tokens else None
        behaviour = BehaviourPass(self.config.loss.behaviour, self._past_logprobs, self.ranks)
        behaviour_seconds = 0.0
        self.optimizer.forget()
        for batch in self._micro_batches(samples):
            before = time.perf_counter()
            past_N = behaviour.logprobs(batch, self.version, self.past_weights)
            behaviour_seconds += time.perf_counter() - before
            scores = self._score(batch)
            past_N = torch.where(
                batch.versions_N == self.version, scores.logprobs_N.detach(), past_N
            )
            inputs = self._loss_inputs(batch, scores, past_N, tokens_S, num_tokens, targets)
            scores.logprobs_N.retain_grad()  # read by the meter
            loss, parts = objective(inputs, self.config.loss)
            (loss + self._router_losses(watch, batch, all_tokens)).backward()
            meter.note(inputs, scores.entropy_N)
            if recorder is not None:
                recorder.note(batch, past_N, scores.entropy_N, self.scorer.routing_record)
            comparable_N = ~past_N.isnan()
            gap_N = (past_N - batch.rollout_logprobs_N).abs()[comparable_N]
            sums["loss"] += loss.item()
            sums["entropy"] += scores.entropy_N.sum().item()
            sums["gap"] += gap_N.sum().item()
            sums["compared"] += gap_N.numel()
            sums["computed"] += len(batch.input_ids_T) if batch.num_tokens else 0
            for name, value in parts.items():
                sums[name] += value.item()
        sums = self.ranks.total(sums)
        grad_norm, fault = self._clipped(sums["loss"])
        self._begin_version()
        if fault:
            return StepResult({"parity/tokens": 0.0}), fault
        self.optimizer.step()
        if self.scorer.critic is not None and self.optimizer.critic is not None:
            self.scorer.critic.centre(mean_error(targets), self.optimizer.critic.value_centring)
        token_scores = recorder.scores(self.ranks) if recorder is not None else []
        self._steer(watch)
        metrics = {
            **_means(sums, num_tokens),
            **meter.metrics(self.ranks),
            "optim/grad_norm": grad_norm,
            "optim/lr": self.optimizer.lr,
            "time/behaviour_seconds": behaviour_seconds,
        }
        if watch is None or self.experts is None:
            return StepResult(metrics, token_scores=token_scores), ""
        metrics |= watch.metrics()
        return StepResult(metrics, self.experts.computing, watch.loads(), token_scores), ""

    def _loss_inputs(
        self,
        batch: PackedBatch,
        scores: Scores,
        past_N: Tensor,
        tokens_S: Tensor,
        num_tokens: int,
        targets: Sequence[Targets],
    ) -> LossInputs:
        """Build the objective's inputs for a micro-batch. past_N: log-probs under the versions that wrote the
        tokens, NaN where the engine's stand for them. tokens_S, num_tokens: policy tokens of each sample, and
        of the whole batch."""
        own_N = past_N
        if self.config.loss.behaviour == "auto":
            own_N = torch.where(past_N.isnan(), batch.rollout_logprobs_N, past_N)
        elif self.config.loss.behaviour == "engine":
            own_N = batch.rollout_logprobs_N
        critic = None
        if scores.values_N is not None:
            critic = value_inputs(scores.values_N, batch.sample_N, targets)
        return LossInputs(
            learner_logprobs_N=scores.logprobs_N,
            behaviour_logprobs_N=own_N,
            # One update per batch: the policy that it starts from is the present one.
            proximal_logprobs_N=scores.logprobs_N.detach(),
            rollout_logprobs_N=batch.rollout_logprobs_N,
            advantages_N=batch.advantages_N,
            sample_N=batch.sample_N,
            sample_tokens_N=tokens_S[batch.sample_N],
            num_samples=len(tokens_S),
            num_tokens=num_tokens,
            max_completion_tokens=self.config.loss.max_completion_tokens,
            critic=critic,
        )

    def _watch(self, samples: Sequence[TrainSample]) -> RouterWatch | None:
        """A watch over the update on these samples. With a balance loss the batch is scored once more for its
        loads, before the update: a micro-batch's own are not the batch's."""
        if self.experts is None:
            return None
        watch = RouterWatch(len(self.scorer.routers), self.experts, self.config.router)
        if self.config.router.balance_weight:
            counts_LE = torch.zeros_like(watch.counts_LE)
            with torch.no_grad():
                for batch in self._micro_batches(samples):
                    self._score(batch)
                    if batch.num_tokens:
                        counts_LE += loads(self.scorer.routing_record, self.experts.total)
            self.ranks.add_up([counts_LE])
            watch.plan(counts_LE, sum(len(s.token_ids) for s in samples))
        return watch

    def _steer(self, watch: RouterWatch | None) -> None:
        """After an update: the whole batch's loads, and the biases moved by them."""
        if watch is None:
            return
        self.ranks.add_up(watch.tensors())
        if self.biases is not None:
            self.biases.update(watch.counts_LE, self.optimizer.updates - 1)

    def _router_losses(
        self, watch: RouterWatch | None, batch: PackedBatch, all_tokens: int
    ) -> Tensor:
        """The balance and the z-loss of the micro-batch that was just scored, weighted."""
        loss = torch.zeros((), device=self.device)
        if not batch.num_tokens:
            return loss
        if watch is not None:
            loss = loss + watch.note(self.scorer.routing_record, batch.num_tokens / all_tokens)
        if self.config.router.z_weight:
            [hidden_TD] = self.scorer.before_norm
            z_loss = hidden_z_loss(hidden_TD[0], batch.copies_T)
            loss = loss + self.config.router.z_weight * z_loss / all_tokens
        return loss

    def _estimated(
        self, samples: Sequence[TrainSample]
    ) -> tuple[Sequence[TrainSample], Sequence[Targets]]:
        """The batch with the advantages that are the learner's to compute, and the critic's targets."""
        name = self.config.advantage
        if name in BATCH_ADVANTAGES:
            if (discount := self.config.turn_discount) is not None:
                return BATCH_TURN_ADVANTAGES[name](samples, discount), ()
            return BATCH_ADVANTAGES[name](samples), ()
        if name not in CRITIC_ADVANTAGES:
            return samples, ()
        settings, advantage = self.config.loss.loss_settings, CRITIC_ADVANTAGES[name]
        assert isinstance(settings, PpoConfig), "a loss with a critic has its settings"
        values = self._by_sample(samples, self._behaviour_values)
        targets = [
            turn_targets(s, v, settings, advantage) for s, v in zip(samples, values, strict=True)
        ]
        return [with_advantages(s, t) for s, t in zip(samples, targets, strict=True)], targets

    def _behaviour_values(self, batch: PackedBatch) -> Tensor:
        """(N,): the value at each token under the version that wrote it; the present version's where no
        weights are kept."""
        values_N = self._values(batch)
        if self.config.loss.behaviour != "engine":
            for version in sorted(batch.versions & set(self.past_weights)):
                past_N = self._values(batch, self.past_weights[version])
                values_N = torch.where(batch.versions_N == version, past_N, values_N)
        return values_N

    def sft_step(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One supervised update: mean negative log-likelihood of the policy's tokens.

        Set aside where loss or gradient is not finite; raises NotFinite after many such updates.
        """
        num_tokens = sum(s.num_policy_tokens for s in samples)
        all_tokens = sum(len(s.token_ids) for s in samples)
        total = 0.0
        watch = self._watch(samples)
        self.optimizer.forget()
        for batch in self._micro_batches(samples):
            loss = -self._score(batch).logprobs_N.sum() / num_tokens
            (loss + self._router_losses(watch, batch, all_tokens)).backward()
            total += loss.item()
        total = self.ranks.total({"loss": total})["loss"]
        grad_norm, fault = self._clipped(total)
        self.set_aside.update(fault)
        if not fault:
            self.optimizer.step()
            self._steer(watch)
        return {"sft/loss": total, "optim/grad_norm": grad_norm}

    def logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probs of each sample's policy tokens under the present weights."""
        return self._by_sample(samples, lambda batch: self._score(batch).logprobs_N)

    @torch.no_grad()
    def _by_sample(
        self, samples: Sequence[TrainSample], numbers: Callable[[PackedBatch], Tensor]
    ) -> list[list[float]]:
        """`numbers(micro-batch)`, (N,), as a list per sample; every rank has all of them."""
        found: list[list[float]] = [[] for _ in samples]
        for batch in self._micro_batches(samples):
            for index, number in zip(batch.sample_N.tolist(), numbers(batch).tolist(), strict=True):
                found[index].append(number)
        return self.ranks.merged(found)

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

    def _micro_batches(self, samples: Sequence[TrainSample]) -> Iterator[PackedBatch]:
        """This rank's, packed; samples of one version stay together, so that each batch is scored again
        under as few past versions as can be."""
        by_version: dict[int, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            by_version[min(sample.policy_versions, default=self.version)].append(index)
        for indices in by_version.values():
            plans = self._plans([samples[i].token_ids for i in indices])
            for together in zip(*plans, strict=True):
                every = [[indices[j] for j in chosen] for chosen in together]
                mine = every.pop(self.ranks.rank)
                beside = [i for other in every for i in other]
                yield pack(samples, mine, self.device, beside, sharing=self.sharing)

    def _plans(self, samples: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """The micro-batches of each rank."""
        most, ranks = self.config.micro_batch_tokens, self.ranks.count
        if self.sharing:
            return plan_shared(samples, most, ranks)
        return plan_micro_batches([len(tokens) for tokens in samples], most, ranks)

    def _past_logprobs(self, batch: PackedBatch, weights: dict[str, Tensor]) -> Tensor:
        return self._score(batch, weights).logprobs_N

    def _values(self, batch: PackedBatch, weights: dict[str, Tensor] | None = None) -> Tensor:
        values_N = self._score(batch, weights).values_N
        assert values_N is not None, "a scorer with a critic"
        return values_N

    def _score(self, batch: PackedBatch, weights: dict[str, Tensor] | None = None) -> Scores:
        """Now, or under an earlier version's weights."""
        if weights is None:
            return self.scorer(batch)
        if self.ranks.count == 1:
            return functional_call(self.scorer, weights, (batch,))
        with exchanged(self.scorer, weights):
            return self.scorer(batch)

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

    def _clipped(self, loss: float) -> tuple[float, str]:
        """Clip the gradient; returns its norm, and a sentence where norm or loss is not finite, else "". Such
        a gradient is dropped: it would stay in every later one."""
        norm = self.optimizer.clip()
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                self.optimizer.forget()
                update = self.optimizer.updates
                return (
                    norm,
                    f"the {what} of update {update} is {value}: the weights stay as they are",
                )
        return norm, ""

    def _begin_version(self) -> None:
        """Before the weights change: keep those of the version that ends."""
        if self.keep_versions:
            self.past_weights[self.version] = self._present_weights()
        self.version += 1
        self.past_weights.pop(self.version - self.keep_versions - 1, None)


def _means(sums: dict[str, float], num_tokens: int) -> dict[str, float]:
    """Turn a batch's sums into metrics per policy token."""
    rest = dict(sums)
    gap, compared = rest.pop("gap"), rest.pop("compared")
    return {
        "learner/computed_tokens": rest.pop("computed"),
        "loss/loss": rest.pop("loss"),
        "loss/entropy": rest.pop("entropy") / num_tokens,
        **{name: value / num_tokens for name, value in rest.items()},
        "parity/mean_abs_dlogp": gap / compared if compared else math.nan,
        "parity/tokens": compared,
        "parity/share": compared / num_tokens,
    }
