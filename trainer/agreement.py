"""Holds a policy to its model's own code before anything is trained: samples alone, packed, sharing tokens.

Takes the learner's scorer and refuses a family that it would compute otherwise than transformers does, with
one sentence on what differs. A few passes over some tens of tokens: seconds. A family with a record
(`trainer.families`) has modules of the learner's own, so there a small model is made of the checkpoint's
config; any other is compared on its own weights.

Refused too: what no short sample could show, since it depends on the longest sample of a micro-batch.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainer.attention_interface import PACKED
from trainer.batch import pack
from trainer.families.family import Unsupported
from trainer.families.registry import FAMILIES
from trainer.policy import build_policy
from trainer.sample import TrainSample
from trainer.scorer import Scorer

# Largest difference of a log-prob in float32, in nats. Rounding makes 1e-5, another model 1e-1 and more.
TOLERANCE = 1e-3
# Tokens of the two samples.
LENGTHS = (37, 23)
# Tokens that two samples have in common.
FORK = 20
# A window of the small model that stands for a family's, so that these samples reach beyond it.
WINDOW = 8
# Rotary embeddings whose frequencies change with the longest sample that is computed.
BY_LENGTH = ("dynamic", "longrope")


def check_agreement(scorer: Scorer, max_tokens: int) -> None:
    """Raise Unsupported where the learner's log-probs are not those of the model's own code.

    scorer: in float32, as it is trained. max_tokens: of a micro-batch.
    """
    model = scorer.model
    assert isinstance(model, PreTrainedModel), "a policy is transformers' model"
    name = model.config.model_type
    try:
        _check_frequencies(model.config, max_tokens)
        if name in FAMILIES:
            _small_agrees(small_config(model.config).to_json_string(use_diff=False))
        else:
            _compare(scorer, model)
    except Exception as error:  # of a model's code that nobody has tried here
        reason = str(error).partition("\n")[0]
        if not isinstance(error, Unsupported):
            reason = f"its code fails on two packed samples, with {type(error).__name__}: {reason}"
        raise Unsupported(
            f"the learner cannot train a policy of the family {name}: {reason}"
        ) from error


def _check_frequencies(config: PreTrainedConfig, max_tokens: int) -> None:
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    sections = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for section in sections:
        kind = section.get("rope_type")
        usual = section.get("original_max_position_embeddings") or text.max_position_embeddings
        if kind in BY_LENGTH and max_tokens > usual:
            raise Unsupported(
                f"its rotary embedding ({kind}) changes for all samples of a micro-batch where one has more "
                f"than {usual} tokens; set learner.micro_batch_tokens to that, or train another policy"
            )


@cache
def _small_agrees(config: str) -> None:
    """`compare_small`, once for a config in a process."""
    compare_small(AutoConfig.for_model(**json.loads(config)))


def compare_small(config: PreTrainedConfig) -> None:
    """Compare a family's modules with transformers' in a model of this config with random weights."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        ours = build_policy(config, torch.float32)
        for weight in ours.parameters():
            # Biases and norms too: at 0 and 1 they would hide where they are passed over.
            weight.add_(0.1 * torch.randn_like(weight))
    # A config says how attention is computed, and a model reads it there.
    stock = AutoModelForCausalLM.from_config(
        deepcopy(config), dtype=torch.float32, attn_implementation="eager"
    )
    mine = ours.state_dict()
    for key, value in stock.state_dict().items():
        # transformers allocates rows for zero-computation experts, which have no weights.
        value[: len(mine[key])].copy_(mine[key])
    assert ours.config._attn_implementation == PACKED, "as it is trained"
    _compare(Scorer(ours, 1.0), stock)


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of the config with the sizes of its family's smallest preset; all else stays."""
    sizes = dict(FAMILIES[config.model_type].presets["tiny"])
    values: dict[str, Any] = {**config.to_dict(), **sizes, "vocab_size": 256}
    values |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if values.get("sliding_window"):
        values["sliding_window"] = WINDOW
    if values.get("layer_types"):
        layers = sizes.get("num_hidden_layers", sizes.get("num_layers", 0))
        values["layer_types"] = values["layer_types"][: int(layers)]
    return AutoConfig.for_model(**values)


@torch.no_grad()
def _compare(scorer: Scorer, own: PreTrainedModel) -> None:
    """Compare a scorer's log-probs with those of its model's own code; `own` may be the scorer's model."""
    device = next(own.parameters()).device
    samples = _samples(own.config.get_text_config().vocab_size)
    with _own_code(own):
        wanted = [_own_logprobs(own, s, scorer.shape.temperature, device) for s in samples]
    alone = [scorer(pack([s], [0], device)).logprobs_N for s in samples]
    together = scorer(pack(samples, range(len(samples)), device)).logprobs_N
    gap = max(_gap(a, b) for a, b in zip(alone, wanted, strict=True))
    if not gap <= TOLERANCE:
        raise Unsupported(
            f"log-probs of a sample differ by up to {gap:.2g} from those of the model's own code"
        )
    # `pack` puts the longest first, which is the samples' order.
    gap = _gap(together, torch.cat(wanted))
    if not gap <= TOLERANCE:
        raise Unsupported(
            f"log-probs of a sample change by up to {gap:.2g} where another one is before it in a "
            "micro-batch: its layers let one sample see another"
        )
    forked = [samples[0], probe_sample(samples[0].token_ids[:FORK] + samples[1].token_ids)]
    apart, sharing = (
        scorer(pack(forked, (0, 1), device, sharing=choice)).logprobs_N for choice in (False, True)
    )
    gap = _gap(apart, sharing)
    if not gap <= TOLERANCE:
        raise Unsupported(
            f"log-probs of samples that begin alike change by up to {gap:.2g} where what they have in "
            "common is computed once: a layer beside its attention looks at the tokens before"
        )


def _samples(vocabulary: int) -> list[TrainSample]:
    rng = random.Random(0)
    return [probe_sample(tuple(rng.randrange(vocabulary) for _ in range(n))) for n in LENGTHS]


def probe_sample(tokens: tuple[int, ...]) -> TrainSample:
    """A sample to try passes on: all tokens but the first are the policy's."""
    n = len(tokens)
    mask = (False, *[True] * (n - 1))
    return TrainSample(f"probe-{n}", "", tokens, mask, (0.0,) * n, (0.0,) * n, (0,) * n)


@contextmanager
def _own_code(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes with its own attention, as for inference."""
    training, usual = model.training, model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(usual or PACKED)
        model.train(training)


def _own_logprobs(
    model: nn.Module, sample: TrainSample, temperature: float, device: torch.device
) -> Tensor:
    """(N,)"""
    ids = torch.tensor([sample.token_ids], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def _gap(found: Tensor, wanted: Tensor) -> float:
    return (found - wanted).abs().max().item()
