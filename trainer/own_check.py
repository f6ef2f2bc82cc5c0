"""Checks a loss, an advantage and a correction of the user's own on a synthetic batch, before anything
starts.

In: the learner's settings. Out: nothing, or BadFunction with one sentence that names the setting. The batch
has three samples of 1, 4 and 3 policy tokens, ratios near 1 and an advantage of either sign. It comes whole
and in two parts, as an update's batch comes in micro-batches.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.config import LearnerConfig, LossConfig
from trainer.own_function import BadFunction, find_function, is_own, one_line, split_counts

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.loss_inputs import LossInputs

LENGTHS = (1, 4, 3)
# Rewards of groups that every advantage meets: different ones, equal ones, two.
GROUPS = ((0.0, 1.0, 0.5, 0.0), (1.0, 1.0, 1.0), (0.0, 2.0))


def check_own_functions(config: LearnerConfig) -> None:
    """Raise BadFunction for the first function of the user's own that could not train a policy."""
    loss = config.loss
    if is_own(config.advantage):
        _named("learner.advantage", _check_advantage, config.advantage)
    if is_own(loss.correction):
        _named(
            "learner.loss.correction",
            lambda name: _check_correction(name, synthetic_batch(loss)),
            loss.correction,
        )
    if is_own(loss.kind):
        _named(
            "learner.loss.kind",
            lambda name: _check_loss(name, synthetic_batch(loss), loss.own),
            loss.kind,
        )


def _named(key: str, check: Callable[[str], None], name: str) -> None:
    try:
        check(name)
    except BadFunction as error:
        raise BadFunction(f"{key}: {error}") from None


def _called(name: str, *values: object, **settings: object) -> Any:
    """Call the function; returns what it gives. Raises BadFunction where it does not take these or raises."""
    function = find_function(name)
    try:
        inspect.signature(function).bind(*values, **settings)
    except TypeError as error:
        raise BadFunction(f"{name!r} has to take {_wanted(values, settings)}: {error}") from None
    except ValueError:  # a function without a signature, such as one of C
        pass
    try:
        return function(*values, **settings)
    except (Exception, SystemExit) as error:
        raise BadFunction(f"{name!r} raised {one_line(error)} on a synthetic batch") from None


def _wanted(values: Sequence[object], settings: Mapping[str, object]) -> str:
    kinds = {"LossInputs": "LossInputs", "Tensor": "weights", "list": "a list of rewards"}
    said = [kinds.get(type(value).__name__, type(value).__name__) for value in values]
    return " and ".join([*said, *(f"the keyword {key!r}" for key in settings)])


def _check_advantage(name: str) -> None:
    for rewards in GROUPS:
        found = _called(name, list(rewards))
        if not isinstance(found, Sequence) or isinstance(found, str | bytes):
            raise BadFunction(
                f"{name!r} returned {type(found).__name__}; it has to return a list with an advantage for "
                "each reward"
            )
        if len(found) != len(rewards):
            raise BadFunction(
                f"{name!r} returned {len(found)} advantages for {len(rewards)} rewards"
            )
        for value in found:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadFunction(
                    f"{name!r} returned an advantage of type {type(value).__name__}; it has to be a "
                    "float"
                )
            if not math.isfinite(value):
                raise BadFunction(f"{name!r} returned the advantage {value} for rewards {rewards}")


def _check_correction(name: str, x: "LossInputs") -> None:
    import torch

    weights_N = split_counts(name, _unchanged(name, x))[0]
    shape = tuple(weights_N.shape)
    if shape != tuple(x.rollout_logprobs_N.shape):
        raise BadFunction(
            f"{name!r} returned weights of shape {shape}; it has to be one per token, "
            f"{tuple(x.rollout_logprobs_N.shape)}"
        )
    if not bool(torch.isfinite(weights_N).all()):
        raise BadFunction(f"{name!r} returned a weight that is not finite")
    if bool((weights_N < 0).any()):
        raise BadFunction(f"{name!r} returned a weight below 0")
    if weights_N.requires_grad:
        raise BadFunction(f"{name!r} returned weights with a gradient; detach them")
    parts_N = torch.cat([split_counts(name, _called(name, part))[0] for part in _parts(x)])
    if not torch.allclose(parts_N, weights_N, rtol=1e-3, atol=1e-6):
        raise BadFunction(
            f"{name!r} returned other weights for a batch in two parts than for the whole: a batch comes in "
            "micro-batches, so a token's weight has to follow from its own sample"
        )


def _check_loss(name: str, x: "LossInputs", settings: Mapping[str, object]) -> None:
    import torch

    weights_N = torch.ones_like(x.rollout_logprobs_N)
    loss, _ = split_counts(name, _unchanged(name, x, weights_N, **settings))
    if loss.ndim:
        raise BadFunction(
            f"{name!r} returned a loss of shape {tuple(loss.shape)}; it has to be a scalar"
        )
    if not math.isfinite(loss.item()):
        raise BadFunction(f"{name!r} returned the loss {loss.item()} on a synthetic batch")
    if not loss.requires_grad:
        raise BadFunction(
            f"{name!r} returned a loss without a gradient: it has to depend on learner_logprobs_N, not "
            "detached"
        )
    try:
        loss.backward()
    except RuntimeError as error:
        raise BadFunction(f"{name!r}: its gradient cannot be computed: {one_line(error)}") from None
    gradient_N = x.learner_logprobs_N.grad
    if gradient_N is None or not bool((gradient_N != 0).any()):
        raise BadFunction(f"{name!r} has a gradient of 0 at every token of a synthetic batch")
    if not bool(torch.isfinite(gradient_N).all()):
        raise BadFunction(f"{name!r} has a gradient that is not finite on a synthetic batch")
    parts = [
        split_counts(
            name, _called(name, part, torch.ones_like(part.rollout_logprobs_N), **settings)
        )
        for part in _parts(x)
    ]
    values = [part.item() for part, _ in parts]
    if not math.isclose(sum(values), loss.item(), rel_tol=1e-3, abs_tol=1e-6):
        raise BadFunction(
            f"{name!r} returned the loss {loss.item():.4g} for a batch, and {values[0]:.4g} and "
            f"{values[1]:.4g} for its two parts: a batch comes in micro-batches whose losses are added up, "
            "so divide a sum by x.num_tokens or x.num_samples, which are of the whole batch, and take no mean"
        )


def _unchanged(name: str, x: "LossInputs", *values: object, **settings: object) -> Any:
    """Call the function; returns what it gives. Raises BadFunction where it changes its inputs, too."""
    before = {key: tensor.detach().clone() for key, tensor in _tensors(x).items()}
    found = _called(name, x, *values, **settings)
    for key, tensor in _tensors(x).items():
        if not tensor.equal(before[key]):
            raise BadFunction(
                f"{name!r} changed {key} in place, which others read after it: compute a new tensor"
            )
    return found


def _parts(x: "LossInputs") -> "list[LossInputs]":
    """The first sample, and the other ones: two micro-batches of the same batch."""
    return [
        replace(x, **{key: tensor.detach()[kept] for key, tensor in _tensors(x).items()})
        for kept in (x.sample_N == 0, x.sample_N != 0)
    ]


def _tensors(x: "LossInputs") -> "dict[str, Tensor]":
    import torch

    return {key: value for key, value in vars(x).items() if isinstance(value, torch.Tensor)}


def synthetic_batch(c: LossConfig | None = None) -> "LossInputs":
    """Three samples whose ratios are near 1, the same ones in every process; float32, with a gradient. Under
    these settings: with a reference and an entropy where they ask for them."""
    import torch

    from trainer.loss_inputs import LossInputs

    draw = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    new_N, old_N, engine_N = (-2.0 + 0.05 * torch.randn(count, generator=draw) for _ in range(3))
    lengths_S = torch.tensor(LENGTHS)
    sample_N = torch.arange(len(LENGTHS)).repeat_interleave(lengths_S)
    return LossInputs(
        learner_logprobs_N=new_N.requires_grad_(),
        behaviour_logprobs_N=old_N,
        proximal_logprobs_N=old_N.clone(),
        rollout_logprobs_N=engine_N,
        advantages_N=torch.tensor([1.0, -0.5, 0.25])[sample_N],
        sample_N=sample_N,
        sample_tokens_N=lengths_S[sample_N],
        num_samples=len(LENGTHS),
        num_tokens=count,
        max_completion_tokens=max(LENGTHS),
        reference_logprobs_N=old_N - 0.1 if c is not None and c.kl is not None else None,
        entropy_N=torch.full_like(old_N, 2.0) if c is not None and c.entropy_weight else None,
    )
