"""A reward model: a policy's layers and a number per head at a conversation's last token, from preferences.

In: pairs of conversations of which one is preferred, in one aspect or over all. Out: a folder that
`load_reward_model` reads; its weights are those of a policy and `score.weight`, as transformers' classes for
sequence classification have them. Left out: several ranks.

The loss is Bradley and Terry's, -log sigmoid(r_chosen - r_rejected - margin) (arXiv 2203.02155, equation 1;
with a margin arXiv 2307.09288, equation 2), with r the head of the pair's aspect, or the weighted sum of all
heads. It leaves the level of the scores open: only differences mean something. Shapes: P pairs, S
conversations of a micro-batch, T tokens of its stream, D hidden size, H heads.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, fsum, log1p
from pathlib import Path

import torch
from pydantic import PositiveFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from trainer.agreement import check_agreement
from trainer.batch import PackedBatch, pack
from trainer.checkpoint_files import read_header
from trainer.config import Dtype, OptimConfig
from trainer.micro_batches import plan_micro_batches
from trainer.optimizer import Optimizer
from trainer.policy import load_policy
from trainer.reward_heads import Heads, config_of, read_heads
from trainer.reward_state import TrainingState
from trainer.sample import TrainSample
from trainer.sample_check import SetAside
from trainer.scorer import Scorer
from trainer.section import Section
from trainer.weights import write_checkpoint, write_weights

HEAD = "score.weight"
ONE_HEAD = Heads()


@dataclass(frozen=True)
class Preference:
    """Two conversations that begin alike, as token ids, e.g. `Preference("row 1", (5, 6, 7), (5, 6, 8))`.

    margin: by how much the chosen one has to be ahead, in the units of the scores. aspect: in which it is
    preferred; "": over all. weights: of the heads, in the score by which the two are compared (H).
    """

    name: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float = 0.0
    aspect: str = ""
    weights: tuple[float, ...] = (1.0,)

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.chosen) + len(self.rejected)


class RewardTraining(Section):
    """Settings. micro_batch_tokens: has to hold the two conversations of the longest pair."""

    epochs: PositiveFloat = 1.0
    batch_size: PositiveInt = 16
    micro_batch_tokens: PositiveInt = 4096
    optim: OptimConfig = OptimConfig(lr=1e-5)
    dtype: Dtype = "float32"
    device: str = "cpu"
    seed: int = 0

    def updates(self, pairs: int) -> int:
        """How many updates there are on so many pairs."""
        return max(1, round(self.epochs * pairs / self.batch_size))


class RewardModel(nn.Module):
    """Scores conversations; 0 for all of them before it is trained."""

    def __init__(self, scorer: Scorer, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.scorer = scorer
        head: Tensor = scorer.model.lm_head.weight  # pyright: ignore
        if head is not scorer.model.model.embed_tokens.weight:  # pyright: ignore
            head.requires_grad_(False)
        self.weight = nn.Parameter(torch.zeros(len(heads.names), head.shape[1]))

    def forward(self, batch: PackedBatch) -> Tensor:
        """(S, H) in float32: the heads' numbers for each conversation, in the order of `batch.samples`."""
        ends_S = torch.tensor(batch.lengths, device=batch.path_A.device).cumsum(0) - 1
        hidden_TD = self.scorer.hidden(batch)
        return hidden_TD[batch.path_A[ends_S]].float() @ self.weight.float().T


def begin_reward_model(checkpoint: Path, c: RewardTraining, heads: Heads = ONE_HEAD) -> RewardModel:
    """A reward model on a policy's layers. Raises Unsupported, ValueError, OSError as `Learner` does."""
    scorer = Scorer(load_policy(checkpoint, torch.float32), 1.0)
    check_agreement(scorer, c.micro_batch_tokens)
    return RewardModel(scorer, heads).to(c.device)


def load_reward_model(folder: Path, device: str = "cpu") -> RewardModel:
    """Read what `save_reward_model` has written. Raises ValueError where the folder is none."""
    file = folder / "model.safetensors"
    if not file.is_file() or HEAD not in read_header(file):
        raise ValueError(f"{folder} is no reward model: it has no {HEAD} in model.safetensors")
    with safe_open(file, framework="pt") as tensors:
        head: Tensor = tensors.get_tensor(HEAD)
    model = RewardModel(Scorer(load_policy(folder, torch.float32), 1.0), read_heads(folder))
    if head.shape != model.weight.shape:
        raise ValueError(
            f"{folder}: {HEAD} is {list(head.shape)}, a reward model's is {list(model.weight.shape)}"
        )
    with torch.no_grad():
        model.weight.copy_(head)
    return model.to(device).eval()


def save_reward_model(model: RewardModel, folder: Path, dtype: Dtype) -> None:
    """Write a folder: the policy's weights and the head, and a config that names the class for sequence
    classification. The tokenizer is the caller's to add."""
    policy = model.scorer.model
    write_checkpoint(policy, folder, getattr(torch, dtype))
    file = folder / "model.safetensors"
    head = model.weight.detach().cpu().to(getattr(torch, dtype))
    write_weights(load_file(file) | {HEAD: head}, file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [
        one.replace("ForCausalLM", "ForSequenceClassification") for one in config["architectures"]
    ]
    config |= {"architectures": names, **config_of(model.heads)}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """(P,): -log sigmoid(r_chosen - r_rejected - margin)."""
    return -logsigmoid(chosen_P - rejected_P - margin_P)


def train_reward_model(
    model: RewardModel,
    pairs: Sequence[Preference],
    c: RewardTraining,
    report: Callable[[int, float], object],
    state: TrainingState | None = None,
) -> int:
    """Train on the pairs, each once in a pass, in an order of the pass's own; `report(update, loss)` after
    each update, the first of which is 0. state: to go on from, and to keep. Returns the update that it began
    with. Raises NotFinite after many updates whose loss is not finite."""
    optimizer = Optimizer(model, c.optim, getattr(torch, c.dtype))
    aside = SetAside()
    drawn = _draw(len(pairs), c.seed)
    begun = state.load(model, optimizer) if state else 0
    size = min(c.batch_size, len(pairs))
    for _ in range(begun * size):
        next(drawn)
    for update in range(begun, c.updates(len(pairs))):
        batch = [pairs[next(drawn)] for _ in range(size)]
        optimizer.forget()
        total = 0.0
        for indices, packed in _micro_batches(batch, c.micro_batch_tokens, c.device):
            scores = _by_pair(model(packed), packed, [batch[i] for i in indices])
            margin_P = torch.tensor([batch[i].margin for i in indices], device=c.device)
            loss = bradley_terry(scores[0], scores[1], margin_P).sum() / len(batch)
            loss.backward()
            total += loss.item()
        _, fault = optimizer.clip_finite(total)
        aside.update(fault)
        if not fault:
            optimizer.step()
        report(update, total)
        if state:
            state.keep(model, optimizer, update + 1)
    return begun


def _draw(count: int, seed: int) -> Iterator[int]:
    order = random.Random(seed)
    while True:
        yield from order.sample(range(count), count)


@torch.no_grad()
def score_pairs(
    model: RewardModel, pairs: Sequence[Preference], micro_batch_tokens: int, device: str = "cpu"
) -> list[tuple[float, float]]:
    """The scores of each pair's chosen and rejected conversation, under the pair's weights of the heads."""
    found: list[tuple[float, float]] = [(0.0, 0.0)] * len(pairs)
    for indices, packed in _micro_batches(pairs, micro_batch_tokens, device):
        scores = _by_pair(model(packed), packed, [pairs[i] for i in indices])
        for index, chosen, rejected in zip(indices, *scores.tolist(), strict=True):
            found[index] = (chosen, rejected)
    return found


def _micro_batches(
    pairs: Sequence[Preference], max_tokens: int, device: str
) -> Iterator[tuple[list[int], PackedBatch]]:
    """Indices of pairs, and both conversations of each as samples 2 i and 2 i + 1; what the two begin with is
    computed once."""
    [plans] = plan_micro_batches([one.num_tokens for one in pairs], max_tokens)
    samples = {i: (_sample(one.chosen), _sample(one.rejected)) for i, one in enumerate(pairs)}
    for indices in plans:
        if indices:
            both = [sample for i in indices for sample in samples[i]]
            yield indices, pack(both, range(len(both)), torch.device(device), sharing=True)


def _sample(ids: Sequence[int]) -> TrainSample:
    zeros = (0.0,) * len(ids)
    return TrainSample("", "", tuple(ids), (False,) * len(ids), zeros, zeros, (-1,) * len(ids))


def _by_pair(numbers_SH: Tensor, batch: PackedBatch, pairs: Sequence[Preference]) -> Tensor:
    """(2, P): scores of the chosen ones and of the rejected ones, in the order of `pairs`."""
    device = numbers_SH.device
    place = torch.empty(2 * len(pairs), dtype=torch.long, device=device)
    place[torch.tensor(batch.samples, device=device)] = torch.arange(
        len(batch.samples), device=device
    )
    weights_PH = torch.tensor([one.weights for one in pairs], device=device)
    return torch.einsum("pch,ph->cp", numbers_SH[place].unflatten(0, (-1, 2)), weights_PH)


@dataclass(frozen=True)
class RewardReport:
    """How well scores fit preferences. accuracy: the share of pairs whose chosen one is ahead, equal ones as
    one half. loss: the mean of `bradley_terry` without margins. gap: the mean of chosen less rejected.
    length_accuracy: the share that "the longer one is better" gets right; length_correlation: between gap and
    difference of lengths: a model that has learnt lengths alone is near 1."""

    pairs: int
    accuracy: float
    loss: float
    gap: float
    length_accuracy: float
    length_correlation: float


def report_on(pairs: Sequence[Preference], scores: Sequence[tuple[float, float]]) -> RewardReport:
    """Compare scores with the preferences. Raises ValueError without any pair."""
    if not pairs:
        raise ValueError("there is no pair to report on")
    gaps = [chosen - rejected for chosen, rejected in scores]
    longer = [float(len(one.chosen) - len(one.rejected)) for one in pairs]
    return RewardReport(
        pairs=len(pairs),
        accuracy=_right(gaps),
        loss=fsum(_softplus(-gap) for gap in gaps) / len(gaps),
        gap=fsum(gaps) / len(gaps),
        length_accuracy=_right(longer),
        length_correlation=_correlation(gaps, longer),
    )


def by_aspect(
    pairs: Sequence[Preference], scores: Sequence[tuple[float, float]]
) -> dict[str, RewardReport]:
    """A report of each aspect, and under "" of the pairs without one where others have one."""
    found: dict[str, RewardReport] = {}
    for aspect in sorted({one.aspect for one in pairs}):
        here = [i for i, one in enumerate(pairs) if one.aspect == aspect]
        found[aspect] = report_on([pairs[i] for i in here], [scores[i] for i in here])
    return {} if found.keys() == {""} else found


def _right(differences: Sequence[float]) -> float:
    return fsum(0.5 if d == 0 else float(d > 0) for d in differences) / len(differences)


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    means = fsum(x) / len(x), fsum(y) / len(y)
    both = fsum((a - means[0]) * (b - means[1]) for a, b in zip(x, y, strict=True))
    size = fsum((a - means[0]) ** 2 for a in x) * fsum((b - means[1]) ** 2 for b in y)
    return both / size**0.5 if size > 0 else 0.0
