"""On-policy distillation: the policy's own tokens are judged by teachers, one advantage per token.

In: a batch that the policy has written, and frozen teachers by environment. Out: the batch with advantages

    A_t = log pi_teacher(y_t) - log pi_student(y_t) + w A_outcome

where pi_student is the policy at the batch's start. Its mean over what the policy writes is -KL(student ||
teacher), so that the gradient of sum A_t log pi(y_t) is that of the KL, token by token, without what a token
leads to (as on-policy distillation in Qwen3, arXiv 2505.09388, section 4.5, and MiniLLM, arXiv 2306.08543,
the reverse KL). A teacher may be of another size or family; it has to have the student's tokenizer, which
`rl` sees to. Each costs its weights in memory, and one forward pass over the samples of its environments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum

import torch

from trainer.agreement import check_agreement
from trainer.config import LearnerConfig, RouterConfig
from trainer.distil_config import SERVED, DistilConfig
from trainer.kl import MAX_LOG_RATIO
from trainer.parallel import Ranks, materialise, shard
from trainer.passes import Passes
from trainer.policy import fill_policy, load_policy, outline_policy
from trainer.sample import TrainSample
from trainer.scorer import Scorer
from trainer.weights import working_dtype


@dataclass(frozen=True)
class Teachers:
    """Frozen policies, by folder, and which of them is an environment's. What a teacher that is a service has
    said comes with the samples."""

    config: DistilConfig
    passes: Mapping[str, Passes]

    def logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probs of each sample's policy tokens under the teacher of its environment.

        Every rank has to call it with the same samples. Raises ValueError for an environment without one.
        """
        by_folder: dict[str, list[int]] = {folder: [] for folder in self.passes}
        for index, sample in enumerate(samples):
            folder = self.config.teacher_of(sample.env)
            if folder is None:
                raise ValueError(f"learner.distill: environment {sample.env!r} has no teacher")
            if not folder.startswith(SERVED):
                by_folder[folder].append(index)
            elif len(sample.teacher_logprobs) != sample.num_policy_tokens:
                raise ValueError(f"sample {sample.id}: its teacher {folder!r} has not scored it")
        found = [list(sample.teacher_logprobs) for sample in samples]
        for folder, indices in by_folder.items():
            passes = self.passes[folder]
            # The experts that the engine chose are the student's.
            mine = [replace(samples[i], routing=None) for i in indices]
            for index, scored in zip(indices, passes.by_sample(mine, passes.logprobs), strict=True):
                found[index] = scored
        return found


def load_teachers(config: LearnerConfig, temperature: float, ranks: Ranks) -> Teachers | None:
    """Read the teachers that the settings name, each rank its part; None without any.

    Raises ValueError or OSError naming what is missing, and Unsupported as `Learner` does.
    """
    if config.distill is None:
        return None
    plain = config.model_copy(update={"router": RouterConfig()})
    passes = {
        folder: Passes(_frozen(folder, config, temperature, ranks), plain, ranks)
        for folder in config.distill.folders()
    }
    return Teachers(config.distill, passes)


def _frozen(folder: str, config: LearnerConfig, temperature: float, ranks: Ranks) -> Scorer:
    """A policy that scores, in the dtype of the learner's products."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    device = torch.device(config.device)
    policy = load_policy(folder, torch.float32) if ranks.count == 1 else outline_policy(folder)
    scorer = Scorer(policy, temperature, float32_head=config.float32_head)
    scorer.requires_grad_(False)
    if ranks.count == 1:
        scorer.to(device)
        check_agreement(scorer, config.micro_batch_tokens)
        for name, weight in scorer.named_parameters():
            weight.data = weight.data.to(working_dtype(name, dtype))
    else:
        check_agreement(scorer, config.micro_batch_tokens)
        shard(scorer, ranks, dtype)
        materialise(scorer, device)
        fill_policy(scorer.model, folder)
    return scorer.eval()


def distilled(
    samples: Sequence[TrainSample],
    teacher: Sequence[Sequence[float]],
    student: Sequence[Sequence[float]],
    config: DistilConfig,
) -> list[TrainSample]:
    """The batch with the advantages above; those it comes with are the outcome's, and count with
    `config.outcome_weight` where an outcome is asked for.

    teacher, student: log-probs of each sample's policy tokens. A difference is cut off at MAX_LOG_RATIO. E.g.
    teacher (-1, -2), student (-1.5, -1), no outcome -> advantages (0.5, -1).
    """
    weight = config.outcome_weight if config.outcome is not None else 0.0
    found: list[TrainSample] = []
    for sample, theirs, own in zip(samples, teacher, student, strict=True):
        gaps = iter([_cut(t - s) for t, s in zip(theirs, own, strict=True)])
        rows = zip(sample.advantages, sample.loss_mask, strict=True)
        advantages = tuple(next(gaps) + weight * a if m else 0.0 for a, m in rows)
        found.append(replace(sample, advantages=advantages))
    return found


def _cut(gap: float) -> float:
    return max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, gap))


def distances(
    samples: Sequence[TrainSample],
    teacher: Sequence[Sequence[float]],
    student: Sequence[Sequence[float]],
) -> dict[str, float]:
    """Metrics: per environment, and over all, the estimate k1 of KL(student || teacher) per policy token, in
    nats."""
    gaps: dict[str, list[float]] = {}
    for sample, theirs, own in zip(samples, teacher, student, strict=True):
        one = [s - t for t, s in zip(theirs, own, strict=True)]
        gaps.setdefault(sample.env, []).extend(one)
    every = [gap for one in gaps.values() for gap in one]
    means = {env: fsum(one) / len(one) for env, one in sorted(gaps.items()) if one}
    found = {f"distill/{env}/kl": value for env, value in means.items()}
    return found | ({"distill/all/kl": fsum(every) / len(every)} if every else {})
