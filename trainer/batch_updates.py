"""The updates on one batch: an objective's gradient over mini-batches and epochs, and the weights moved by
it.

In: samples that are fit for training, with their advantages. Out: changed weights and a `StepResult`.
Log-probs that stay the same over a batch's updates (of the versions that wrote the tokens, of the policy at
the batch's start) are computed once, before the first of several updates; a single update finds them in its
own passes. Every rank runs the same updates on its share. Shapes: see `trainer.batch`; C columns.
"""

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.batch import PackedBatch
from trainer.behaviour import BehaviourPass
from trainer.config import LearnerConfig, UpdatesConfig
from trainer.critic import Targets, mean_error, value_inputs
from trainer.distillation import Teachers, distances, distilled
from trainer.kl import ESTIMATORS, k3, penalised
from trainer.learning_meter import LearningMeter
from trainer.loss import objective
from trainer.loss_inputs import LossInputs
from trainer.moe.steering import RouterSteering
from trainer.optimizer import Optimizer
from trainer.passes import Passes
from trainer.reference import Reference
from trainer.sample import TrainSample
from trainer.scorer import Scores
from trainer.step_result import StepResult
from trainer.token_recorder import TokenRecorder


@dataclass(frozen=True)
class Training:
    """A policy's passes, optimizer and routers, with the settings that train it."""

    config: LearnerConfig
    passes: Passes
    optimizer: Optimizer
    steering: RouterSteering


@dataclass(frozen=True)
class Update:
    """One update that was made. tokens: policy tokens of its mini-batch; sums: over them; counts: over them,
    by metric, as the objective names them; ratio: the largest of present over proximal policy."""

    tokens: int
    sums: Mapping[str, float]
    counts: Mapping[str, float]
    grad_norm: float
    ratio: float


@dataclass(frozen=True)
class Fixed:
    """A micro-batch's log-probs that no update changes, each (N,). past: under the version that wrote the
    token, NaN where the engine's stand for it. proximal: under the weights at the batch's start. reference:
    under the reference's, where there is one."""

    past_N: Tensor
    proximal_N: Tensor
    reference_N: Tensor | None = None


def mini_batches(count: int, c: UpdatesConfig, seed: int) -> list[list[int]]:
    """The samples of each update in order, e.g. of 4 samples in 2 mini-batches [[1, 2], [0, 3]].

    Each epoch deals all samples anew to mini-batches that differ by one sample at most, by the seed alone;
    fewer samples than mini-batches make one each.
    """
    if c.count == 1:
        return [list(range(count))]
    plan: list[list[int]] = []
    for epoch in range(c.epochs):
        order = list(range(count))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        parts = min(c.mini_batches, count)
        plan += [sorted(order[part::parts]) for part in range(parts)]
    return plan


def trajectory_tokens(samples: Sequence[TrainSample]) -> tuple[Tensor, int]:
    """(S,): for each sample the policy tokens of its trajectory among these samples; and how many
    trajectories there are. A long episode of many segments does not count more than a short one."""
    whole = Counter[str]()
    for s in samples:
        whole[s.trajectory] += s.num_policy_tokens if s.trajectory else 0
    alone = sum(not s.trajectory for s in samples)
    tokens = [whole[s.trajectory] if s.trajectory else s.num_policy_tokens for s in samples]
    return torch.tensor(tokens, dtype=torch.long), alone + len(whole.keys() - {""})


class BatchUpdates:
    """Trains one policy on one batch."""

    def __init__(
        self,
        training: Training,
        samples: Sequence[TrainSample],
        targets: Sequence[Targets],
        *,
        version: int,
        past_weights: Mapping[int, dict[str, Tensor]],
        reference: Reference | None = None,
        teachers: Teachers | None = None,
    ) -> None:
        """targets: a critic's, one per sample; empty without one. version: of the present weights."""
        self.training, self.config, self.passes = training, training.config, training.passes
        self.samples, self.targets = samples, targets
        self.version, self.past_weights = version, past_weights
        self.reference, self.teachers = reference, teachers
        self.of_teachers: dict[str, float] = {}
        self.device = self.passes.device
        self.plan = [
            chosen
            for chosen in mini_batches(len(samples), self.config.updates, version)
            if any(samples[i].num_policy_tokens for i in chosen)
        ]
        self.watch = training.steering.watch()
        self.meter = LearningMeter(samples, self.device)
        self.recorder = TokenRecorder(samples) if self.config.record_tokens else None
        self.behaviour = BehaviourPass(
            self.config.loss.behaviour, self.passes.logprobs, self.passes.ranks
        )
        self.behaviour_seconds = 0.0
        # Per sample the rows of `Fixed`, (tokens, C); empty where the one update has them itself.
        self.fixed: list[Tensor] = []
        # Tokens whose log-prob the learner knows beside the engine's, and the sum of their differences.
        self.parity = {"compared": 0.0, "gap": 0.0}

    def run(self, begin_version: Callable[[], None]) -> tuple[StepResult, list[str], int]:
        """Make the updates. `begin_version` is called before the weights change.

        Returns the result, a sentence for each update that was set aside because its loss or gradient was not
        finite, and how many updates were made.
        """
        kl = self.config.loss.kl
        in_reward = kl is not None and kl.place == "reward"
        if len(self.plan) > 1 or in_reward or self.teachers is not None:
            self._fix()
        if self.teachers is not None:
            self._distil(self.teachers)
        if kl is not None and in_reward:
            found = [ESTIMATORS[kl.estimator](one[:, 2] - one[:, 1]).tolist() for one in self.fixed]
            self.samples = penalised(self.samples, found, kl.weight)
            if self.recorder is not None:
                self.recorder.samples = self.samples
        done: list[Update] = []
        faults: list[str] = []
        stopped, limit = False, self.config.updates.max_kl
        for number, chosen in enumerate(self.plan):
            update = self._gradient(chosen)
            sums, tokens = update.sums, update.tokens
            if number and limit is not None and sums["kl"] > limit * tokens:
                self.training.optimizer.forget()
                stopped = True
                break
            norm, fault = self.training.optimizer.clip_finite(sums["loss"])
            if not number:
                begin_version()
            if fault:
                faults.append(fault)
                continue
            self.training.optimizer.apply()
            done.append(replace(update, grad_norm=norm))
        if not done:
            return StepResult({"parity/tokens": 0.0}), faults, 0
        return self._result(done, stopped), faults, len(done)

    def _distil(self, teachers: Teachers) -> None:
        """Give the batch the advantages of its teachers."""
        assert self.config.distill is not None, "there are teachers"
        start = time.perf_counter()
        theirs = teachers.logprobs(self.samples)
        own = [one[:, 1].tolist() for one in self.fixed]
        self.of_teachers = distances(self.samples, theirs, own)
        self.of_teachers["time/teachers_seconds"] = time.perf_counter() - start
        self.samples = distilled(self.samples, theirs, own, self.config.distill)
        if self.recorder is not None:
            self.recorder.samples = self.samples

    def _fix(self) -> None:
        """Score the batch as it is at its start."""
        start = time.perf_counter()
        rows = self.passes.by_sample(self.samples, self._fixed_rows)
        columns = 2 if self.reference is None else 3
        self.fixed = [torch.tensor(one).view(len(one), columns) for one in rows]
        self.behaviour_seconds += time.perf_counter() - start

    def _fixed_rows(self, batch: PackedBatch) -> Tensor:
        """(N, C): `Fixed` of a micro-batch at the batch's start, which is recorded."""
        reference_N = self._reference_logprobs(batch)
        past_N = self.behaviour.logprobs(batch, self.version, self.past_weights)
        scores = self.passes.score(batch)
        past_N = torch.where(batch.versions_N == self.version, scores.logprobs_N, past_N)
        self._note_start(batch, past_N, scores)
        columns = [past_N, scores.logprobs_N]
        if self.reference is not None:
            columns.append(scores.logprobs_N if reference_N is None else reference_N)
        return torch.stack(columns, 1)

    @torch.no_grad()
    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        """(N,): log-probs under the reference; None without one, and where it is the policy as it is."""
        if self.reference is None:
            return None
        weights = self.reference.weights(self.version, self.past_weights)
        return None if weights is None else self.passes.logprobs(batch, weights)

    def _fixed_of(self, batch: PackedBatch, chosen: Sequence[int]) -> Fixed:
        """Look up what was computed at the batch's start of a micro-batch of the chosen samples."""
        rows = [self.fixed[chosen[i]] for i in batch.sample_N.unique_consecutive().tolist()]
        columns = 2 if self.reference is None else 3
        rows_NC = torch.cat(rows or [torch.zeros(0, columns)]).to(self.device)
        return Fixed(*rows_NC.unbind(1))

    def _note_start(self, batch: PackedBatch, past_N: Tensor, scores: Scores) -> None:
        """Note of each micro-batch, once, how it stood at the batch's start."""
        comparable_N = ~past_N.isnan()
        gap_N = (past_N - batch.rollout_logprobs_N).abs()[comparable_N]
        self.parity["gap"] += gap_N.sum().item()
        self.parity["compared"] += gap_N.numel()
        if self.recorder is not None:
            record = self.training.steering.record
            self.recorder.note(batch, past_N, scores.entropy_N, record)

    def _gradient(self, chosen: Sequence[int]) -> Update:
        """Compute the gradient on the chosen samples. Returns the update over all ranks, whose norm is not
        known yet."""
        samples = [self.samples[i] for i in chosen]
        targets = [self.targets[i] for i in chosen] if self.targets else []
        tokens_S, trajectories = trajectory_tokens(samples)
        tokens_S = tokens_S.to(self.device)
        chosen_S = torch.tensor(chosen, device=self.device)
        num_tokens = sum(s.num_policy_tokens for s in samples)
        all_tokens = sum(len(s.token_ids) for s in samples)
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        most = torch.full((), -torch.inf, dtype=torch.float64, device=self.device)
        steering = self.training.steering
        steering.plan(self.watch, samples)
        self.training.optimizer.forget()
        for batch in self.passes.micro_batches(samples):
            known = self._fixed_of(batch, chosen) if self.fixed else None
            past_N = known.past_N if known else self._past(batch)
            reference_N = known.reference_N if known else self._reference_logprobs(batch)
            scores = self.passes.score(batch)
            now_N = scores.logprobs_N.detach()
            if known is None:
                past_N = torch.where(batch.versions_N == self.version, now_N, past_N)
                if self.reference is not None and reference_N is None:
                    reference_N = now_N
                known = Fixed(past_N, now_N, reference_N)
                self._note_start(batch, past_N, scores)
            inputs = self._loss_inputs(
                batch, scores, known, tokens_S, (trajectories, num_tokens), targets
            )
            scores.logprobs_N.retain_grad()  # read by the meter
            loss, parts = objective(inputs, self.config.loss)
            (loss + steering.losses(self.watch, batch, all_tokens)).backward()
            self.meter.note(inputs, scores.entropy_N, chosen_S)
            moved_N = (now_N - known.proximal_N).double()
            if len(moved_N):
                most = most.maximum(moved_N.max())
            sums["loss"] += loss.item()
            sums["kl"] += k3(moved_N).sum().item()
            sums["computed"] += len(batch.input_ids_T) if batch.num_tokens else 0
            sums["entropy"] += scores.entropy_N.sum().item()
            for name, value in parts.items():
                counts[name] += value.item()
        ranks = self.passes.ranks
        ranks.greatest([most])
        return Update(
            num_tokens, ranks.total(sums), ranks.named(counts), math.nan, math.exp(most.item())
        )

    def _past(self, batch: PackedBatch) -> Tensor:
        start = time.perf_counter()
        past_N = self.behaviour.logprobs(batch, self.version, self.past_weights)
        self.behaviour_seconds += time.perf_counter() - start
        return past_N

    def _loss_inputs(
        self,
        batch: PackedBatch,
        scores: Scores,
        fixed: Fixed,
        tokens_S: Tensor,
        counts: tuple[int, int],
        targets: Sequence[Targets],
    ) -> LossInputs:
        """Build the objective's inputs for a micro-batch. tokens_S: policy tokens of the trajectory of each
        sample of the update. counts: its trajectories, and their policy tokens."""
        own_N = fixed.past_N
        if self.config.loss.behaviour == "auto":
            own_N = torch.where(own_N.isnan(), batch.rollout_logprobs_N, own_N)
        elif self.config.loss.behaviour == "engine":
            own_N = batch.rollout_logprobs_N
        critic = None
        if scores.values_N is not None:
            critic = value_inputs(scores.values_N, batch.sample_N, targets)
        return LossInputs(
            learner_logprobs_N=scores.logprobs_N,
            behaviour_logprobs_N=own_N,
            proximal_logprobs_N=fixed.proximal_N,
            rollout_logprobs_N=batch.rollout_logprobs_N,
            advantages_N=batch.advantages_N,
            sample_N=batch.sample_N,
            sample_tokens_N=tokens_S[batch.sample_N],
            num_samples=counts[0],
            num_tokens=counts[1],
            max_completion_tokens=self.config.loss.max_completion_tokens,
            reference_logprobs_N=fixed.reference_N,
            entropy_N=scores.entropy_N if self.config.loss.entropy_weight else None,
            critic=critic,
        )

    def _result(self, done: Sequence[Update], stopped: bool) -> StepResult:
        """Move what moves once per batch, and sum up."""
        optimizer, ranks = self.training.optimizer, self.passes.ranks
        optimizer.updates += 1
        critic = self.passes.scorer.critic
        if critic is not None and optimizer.critic is not None:
            critic.centre(mean_error(self.targets), optimizer.critic.value_centring)
        token_scores = self.recorder.scores(ranks) if self.recorder is not None else []
        self.training.steering.steer(self.watch, optimizer.updates - 1)
        parity = ranks.total(self.parity)
        gap, compared = parity["gap"], parity["compared"]
        metrics = {
            **_means(done),
            "parity/mean_abs_dlogp": gap / compared if compared else math.nan,
            "parity/tokens": compared,
            "parity/share": compared / sum(s.num_policy_tokens for s in self.samples),
            **self.meter.metrics(ranks),
            **(_of_updates(done, stopped) if len(self.plan) > 1 else {}),
            **self.of_teachers,
            "optim/lr": optimizer.lr,
            "time/behaviour_seconds": self.behaviour_seconds,
        }
        experts = self.training.steering.experts
        if self.watch is None or experts is None:
            return StepResult(metrics, token_scores=token_scores)
        metrics |= self.watch.metrics()
        return StepResult(metrics, experts.computing, self.watch.loads(), token_scores)


def _means(done: Sequence[Update]) -> dict[str, float]:
    """Means over the updates of loss and norm, and over their policy tokens of all else."""
    tokens = sum(one.tokens for one in done)
    sums: dict[str, float] = defaultdict(float)
    for one in done:
        for name, value in (*one.sums.items(), *one.counts.items()):
            sums[name] += value
    counts = dict.fromkeys(name for one in done for name in one.counts)
    return {
        "learner/computed_tokens": sums["computed"],
        "loss/loss": sums["loss"] / len(done),
        "loss/entropy": sums["entropy"] / tokens,
        **{name: sums[name] / tokens for name in counts},
        "optim/grad_norm": sum(one.grad_norm for one in done) / len(done),
    }


def _of_updates(done: Sequence[Update], stopped: bool) -> dict[str, float]:
    """Metrics of each of a batch's updates, the first is 1, before its weights change."""
    found = {"update/made": float(len(done)), "update/stopped": float(stopped)}
    for number, one in enumerate(done, 1):
        found |= {
            f"update/{number}/loss": one.sums["loss"],
            f"update/{number}/kl": one.sums["kl"] / one.tokens,
            f"update/{number}/ratio_max": one.ratio,
            f"update/{number}/grad_norm": one.grad_norm,
            f"update/{number}/policy_tokens": float(one.tokens),
        }
    return found
