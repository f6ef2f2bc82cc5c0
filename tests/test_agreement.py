"""Families held to their models' own code: which are trained, which refused and why.

Each is a model of a few thousand random weights, made from a config.
"""

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_learner import assert_close, learner, samples, stock_logprobs
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from trainer.agreement import (
    LENGTHS,
    check_agreement,
    compare_small,
    small_config,
)
from trainer.attention_interface import PACKED, Mask, _interface, variant_attention
from trainer.batch import pack
from trainer.cpu.attention import BLOCK, plan_buckets
from trainer.families.family import Unsupported
from trainer.moe.router import SoftmaxRouter
from trainer.policy import build_policy
from trainer.scorer import Scorer

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED_EXPERT = QWEN_EXPERTS | {"shared_expert_intermediate_size": 32}
MLA = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GEMMA = WINDOW | {"query_pre_attn_scalar": 16}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
# Families that are computed as their own code does, some of them by what attention or head are told.
ACCEPTED = {
    "llama": {},
    "llama with yarn": {"rope_parameters": YARN},
    "qwen2": {},
    "qwen2 with a window": WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "mistral with a window": WINDOW,
    "phi3 with a window": WINDOW,
    "olmo": {},
    "olmo3": WINDOW,
    "smollm3": {},
    "cohere": {"logit_scale": 0.25},
    "cohere2": WINDOW | {"logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.1, "embedding_multiplier": 4.0},
    "gemma": {},
    "gemma2": GEMMA | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0},
    "gemma3_text": GEMMA | {"final_logit_softcapping": 5.0},
    "seed_oss with dropout": {"residual_dropout": 0.5, "attention_dropout": 0.5},
    "mixtral with jitter": EXPERTS | {"router_jitter_noise": 0.3, "sliding_window": None},
    "gpt_oss": EXPERTS | WINDOW,
    "granitemoe": EXPERTS | {"logits_scaling": 8.0},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": SHARED_EXPERT,
    "deepseek_v3": MLA
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "qwen3_moe": QWEN_EXPERTS,
    "qwen3_moe with a window": QWEN_EXPERTS | WINDOW | {"use_sliding_window": True},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [4.0] * 8,
    "short_factor": [1.0] * 8,
    "original_max_position_embeddings": 32,
}
BY_LENGTH = "changes for all samples of a micro-batch where one has more than 32 tokens"
REFUSED = {
    "qwen3_next": (
        SHARED_EXPERT
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
        r"family qwen3_next: log-probs of a sample change by up to \d.* where another one is before it",
    ),
    # It does not hand on what tells its attention where a sample begins.
    "nemotron": (
        {},
        "where another one is before it in a micro-batch: its layers let one sample see",
    ),
    "llama4_text": (
        {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 96},
        "its mask reaches back 16 tokens, and its attention is told over all tokens",
    ),
    "gpt2": ({}, "family gpt2: GPT2LMHeadModel has no model.norm and lm_head"),
    "mamba": ({}, "family mamba: MambaForCausalLM has no model.norm and lm_head"),
    "llama with dynamic": (
        {
            "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
        rf"its rotary embedding \(dynamic\) {BY_LENGTH}",
    ),
    "phi3 with longrope": (
        {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE},
        rf"its rotary embedding \(longrope\) {BY_LENGTH}",
    ),
    "qwen3_moe with gelu": (
        QWEN_EXPERTS | {"hidden_act": "gelu"},
        "qwen3_moe with hidden_act 'gelu': its experts are written for 'silu'",
    ),
    "qwen3_moe, dense, with gelu": (
        QWEN_EXPERTS | {"hidden_act": "gelu", "mlp_only_layers": [0, 1, 2, 3]},
        "qwen3_moe with hidden_act 'gelu': its dense layers are written for 'silu'",
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers warns of token ids that these small vocabularies do not have."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def config(name: str, changes: dict[str, object]) -> PreTrainedConfig:
    family = name.split(" ")[0].rstrip(",")
    return CONFIG_MAPPING[family](**(SIZES | changes))


def policy(name: str, changes: dict[str, object]) -> PreTrainedModel:
    """As the learner builds it, no weight at 0 or 1."""
    torch.manual_seed(0)
    model = build_policy(config(name, changes), torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def own_code(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in transformers' own modules."""
    own = AutoModelForCausalLM.from_config(
        deepcopy(model.config), dtype=torch.float32, attn_implementation="eager"
    )
    own.load_state_dict(model.state_dict())
    return own.eval()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_families_that_are_trained_have_their_own_codes_log_probs_and_gradients(name, temperature):
    ours = policy(name, ACCEPTED[name])
    own = own_code(ours)
    scorer = Scorer(ours, temperature).train()
    check_agreement(scorer, 64)
    assert ours.config._attn_implementation == PACKED and scorer.training
    several = samples()
    found = scorer(pack(several, range(len(several)), CPU)).logprobs_N
    order = sorted(several, key=lambda s: -len(s.token_ids))
    wanted = torch.cat([stock_logprobs(own, s, temperature) for s in order])
    assert_close(found, wanted, 1e-5, "log-probs")
    # Each token with a weight of its own, or errors of opposite sign would cancel.
    weight = torch.linspace(-1, 1, len(found))
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    theirs = dict(own.named_parameters())
    for key, parameter in ours.named_parameters():
        grad = theirs[key].grad
        if grad is None or not grad.abs().max() > 1e-6:
            continue
        assert parameter.grad is not None, key
        assert_close(parameter.grad, grad, 1e-4, key)


@pytest.mark.heavy
@pytest.mark.parametrize("name", REFUSED)
def test_families_that_are_refused_get_a_sentence_on_what_differs(name):
    changes, sentence = REFUSED[name]
    with pytest.raises(Unsupported, match=sentence) as caught:
        check_agreement(Scorer(policy(name, changes), 1.0).train(), 64)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("the learner cannot train a policy of the family ")


def test_lengths_that_no_micro_batch_has_are_no_reason_to_refuse():
    changes, _ = REFUSED["llama with dynamic"]
    longer = changes | {"max_position_embeddings": 64}
    check_agreement(Scorer(policy("llama", longer), 1.0).train(), 64)


def test_a_learner_refuses_at_its_start(tmp_path):
    policy("qwen3_next", REFUSED["qwen3_next"][0]).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="cannot train a policy of the family qwen3_next"):
        learner(tmp_path)


def test_a_learner_of_a_family_without_a_record_takes_a_step(tmp_path):
    policy("gemma2", ACCEPTED["gemma2"]).save_pretrained(tmp_path)
    ours = learner(tmp_path, recompute=True)
    assert math.isfinite(ours.step(samples()).metrics["loss/loss"])


def test_a_difference_that_is_small_is_seen_too():
    """A head's bias, which the scorer does not know."""
    model = policy("llama", {})
    model.lm_head.bias = nn.Parameter(0.01 * torch.randn(SIZES["vocab_size"]))
    with pytest.raises(Unsupported, match=r"differ by up to 0\.0"):
        check_agreement(Scorer(model, 1.0), 64)


def test_a_layer_that_looks_at_the_token_before_is_refused_where_samples_share_tokens():
    """It knows where a sample begins, by its position, so packed samples end to end are right."""
    model = policy("llama", {})

    def mixed(module: nn.Module, arguments: tuple, kwargs: dict, out: Tensor) -> Tensor:
        inside = (kwargs["position_ids"] > 0).unsqueeze(-1)
        return out + 0.5 * out.roll(1, 1) * inside

    model.model.layers[0].register_forward_hook(mixed, with_kwargs=True)
    with pytest.raises(Unsupported, match=r"begin alike change by .* looks at the tokens before$"):
        check_agreement(Scorer(model, 1.0), 64)


def test_code_that_fails_is_one_sentence():
    model = policy("llama", {})

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such kernel\nand more")

    model.model.layers[0].register_forward_pre_hook(broken, with_kwargs=True)
    with pytest.raises(Unsupported, match=r"with RuntimeError: no such kernel$"):
        check_agreement(Scorer(model, 1.0), 64)


def test_a_module_of_ours_that_is_wrong_is_seen(family_checkpoint: Path, monkeypatch):
    ours = learner(family_checkpoint)
    small = small_config(ours.model.config)
    compare_small(small)
    kind = next(type(r).__mro__[1] for r in ours.scorer.routers)
    stock = kind.forward

    def skewed(self, hidden_states: Tensor):
        logits, weights, chosen = stock(self, hidden_states)
        return logits, 1.1 * weights, chosen

    monkeypatch.setattr(kind, "forward", skewed)
    with pytest.raises(Unsupported, match="log-probs of a sample differ by up to"):
        compare_small(small)
    assert kind is not SoftmaxRouter or ours.model.config.model_type == "qwen3_moe"


def test_the_probe_leaves_random_numbers_and_the_policy_as_they_were():
    scorer = Scorer(policy("gpt_oss", ACCEPTED["gpt_oss"]), 1.0).train()
    before = {k: v.clone() for k, v in scorer.state_dict().items()}
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    check_agreement(scorer, 64)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(v, before[k]) for k, v in scorer.state_dict().items())
    assert all(p.grad is None for p in scorer.parameters())


def by_hand(q: Tensor, k: Tensor, v: Tensor, lengths, window, softcap, sinks) -> Tensor:
    """Head by head, token by token, scale 0.3."""
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=q.dtype)
    share, start = q.shape[1] // k.shape[1], 0
    for n in lengths:
        for t in range(start, start + n):
            seen = slice(max(start, t - window + 1) if window else start, t + 1)
            for head in range(q.shape[1]):
                scores = k[seen, head // share] @ q[t, head] * 0.3
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = scores.exp()
                rest = sinks[head].exp() if sinks is not None else 0.0
                out[t, head] = (weights / (weights.sum() + rest)) @ v[seen, head // share]
        start += n
    return out


@pytest.mark.heavy
@pytest.mark.parametrize("window", [None, 1, 5, BLOCK + 9])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
def test_windows_caps_and_sinks_by_hand_over_more_than_a_block(window, softcap, sinks):
    lengths = [BLOCK + 30, BLOCK + 21, 6, 1]
    torch.manual_seed(1)
    q, k, v = (torch.randn(sum(lengths), n, 6, dtype=torch.float64) for n in (4, 2, 2))
    sinks_H = torch.randn(4, dtype=torch.float64) if sinks else None
    leaves = [t.requires_grad_() for t in (q, k, v, *([sinks_H] if sinks_H is not None else []))]
    options = {"window": window, "softcap": softcap, "sinks_H": sinks_H}
    found = variant_attention(q, k, v, 0.3, plan_buckets(lengths, CPU), **options)
    wanted = by_hand(q, k, v, lengths, window, softcap, sinks_H)
    assert torch.allclose(found, wanted, atol=1e-5)  # its softmax is float32
    weight = torch.randn_like(wanted)
    pairs = (torch.autograd.grad((one * weight).sum(), leaves) for one in (found, wanted))
    for mine, theirs in zip(*pairs, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"alibi": torch.ones(2)}, "its attention is handed alibi, which"),
        ({"top_k": 8, "position_bias": 1.0}, "is handed position_bias and top_k, which"),
        ({"is_causal": False}, "its attention is not causal"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "handed a mask that its own code made"),
        ({"attention_mask": Mask(None, causal=False)}, "masked by a condition of its own"),
        ({"attention_mask": Mask(8, causal=True)}, "mask reaches back 8 tokens, and .* all tokens"),
        ({"sliding_window": 3, "attention_mask": Mask(None, causal=True)}, "is told 3 tokens"),
    ],
)
def test_what_attention_is_handed_and_does_not_know_is_an_error(told, sentence):
    q = torch.randn(1, 2, 4, 6)
    harmless = {"position_ids": torch.arange(4)[None], "output_attentions": False, "softcap": None}
    given = {"attention_mask": None, "scaling": 1.0} | harmless
    _interface(nn.Identity(), q, q, q, **given)
    with pytest.raises(Unsupported, match=sentence):
        _interface(nn.Identity(), q, q, q, **(given | told))


def test_the_samples_of_the_probe_reach_beyond_a_window():
    assert min(LENGTHS) > 2 * WINDOW["sliding_window"]
    assert replace(Mask(8, causal=True), window=None) == Mask(None, causal=True)
