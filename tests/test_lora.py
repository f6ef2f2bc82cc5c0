"""Low-rank adapters: what a policy computes with them, what is trained, what is kept, published and saved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_learner import assert_close, flat, learner, samples, stock_logprobs, with_rollout_logprobs
from transformers import AutoModelForCausalLM

from trainer.config import LoraConfig, LossConfig, OptimConfig
from trainer.critic_config import CriticConfig
from trainer.export import export_policy
from trainer.families.registry import FAMILIES
from trainer.learner import Learner
from trainer.lora import LoraLinear, adapters, add_adapters
from trainer.policy import load_policy
from trainer.weights import write_weights

pytestmark = pytest.mark.heavy

RANK, ALPHA = 4, 12.0


def lora(folder: Path) -> LoraConfig:
    """Adapters on every layer that may have one."""
    family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    return LoraConfig(rank=RANK, alpha=ALPHA, targets=FAMILIES[family].adapter_targets)


def adapted(folder: Path, **config) -> Learner:
    settings = {"lora": lora(folder), "optim": OptimConfig(lr=2e-2), **config}
    keep = settings.pop("keep_versions", 0)
    return learner(folder, keep_versions=keep, **settings)


def trained(folder: Path, steps: int = 2, **config) -> Learner:
    """A learner after some updates, so that no B is zero."""
    ours = adapted(folder, **config)
    for _ in range(steps):
        ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), ours.version))
    return ours


def by_hand(folder: Path, tensors: dict[str, torch.Tensor], dtype: str = "float32"):
    """transformers' model, its weights rounded to `dtype` as the learner's are but for the router's, with
    W + (alpha / rank) B A written into each adapted weight."""
    stock = AutoModelForCausalLM.from_pretrained(folder)
    state = stock.state_dict()
    for name, weight in state.items():
        if ".router." not in name:
            weight.copy_(weight.to(getattr(torch, dtype)))
    names = {name.split(".lora_")[0] for name in tensors}
    for name in names:
        a, b = tensors[f"{name}.lora_A.weight"].double(), tensors[f"{name}.lora_B.weight"].double()
        weight = state[name.removeprefix("base_model.model.") + ".weight"]
        weight.copy_(weight.double() + ALPHA / RANK * torch.einsum("or,ri->oi", b, a))
    return stock


def stock_scores(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([stock_logprobs(model, s) for s in samples()])


def test_training_begins_at_the_policy_as_it_is(family_checkpoint):
    ours, plain = adapted(family_checkpoint), learner(family_checkpoint)
    gap = flat(ours.logprobs(samples())) - flat(plain.logprobs(samples()))
    assert gap.abs().max() <= 1e-5
    layers = adapters(ours.model)
    assert all(layer.lora_A.any() and not layer.lora_B.any() for layer in layers.values())


def test_adapters_begin_alike_whatever_was_drawn_before(checkpoint):
    states = []
    for seed in (1, 2):
        model = load_policy(checkpoint, torch.float32)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        add_adapters(model, lora(checkpoint))
        assert torch.equal(torch.get_rng_state(), before), "nor does what is drawn after"
        states.append(model.state_dict())
    drawn = {name: t for name, t in states[0].items() if name.endswith("lora_A")}
    assert len({t.flatten()[0].item() for t in drawn.values()}) == len(drawn), "each its own"
    for name, tensor in drawn.items():
        assert torch.equal(tensor, states[1][name]), name


def test_every_layer_of_a_targets_name_is_adapted_and_no_other(family_checkpoint):
    config = lora(family_checkpoint)
    model = load_policy(family_checkpoint, torch.float32)
    wanted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] in config.targets
    }
    add_adapters(model, config)
    assert set(adapters(model)) == wanted
    assert not any(".experts" in name or "router" in name or "gate." in name for name in wanted)


def test_after_training_the_policy_is_that_of_w_plus_scaled_b_a(family_checkpoint, tmp_path):
    ours = trained(family_checkpoint)
    write_weights(ours.snapshot(torch.float32), tmp_path / "version-2.safetensors")
    tensors = load_file(tmp_path / "version-2.safetensors")
    found = flat(ours.logprobs(samples()))
    assert_close(found, stock_scores(by_hand(family_checkpoint, tensors)), 1e-5, "by hand")
    base = stock_scores(AutoModelForCausalLM.from_pretrained(family_checkpoint))
    assert (found - base).abs().mean() > 0.05, "else the comparison says nothing"


def test_gradients_of_adapters_follow_from_those_of_whole_weights(family_checkpoint):
    """With y = (W + s B A) x, dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW (the chain rule on the sum)."""
    ours = trained(family_checkpoint)
    held = {n: (m.lora_A.detach().clone(), m.lora_B.detach().clone()) for n, m in _layers(ours)}
    stock = AutoModelForCausalLM.from_pretrained(family_checkpoint)
    state = stock.state_dict()
    for name, (a, b) in held.items():
        state[f"{name}.weight"] += ALPHA / RANK * b @ a
    (-torch.cat([stock_logprobs(stock, s) for s in samples()]).sum()).backward()
    for batch in ours.passes.micro_batches(samples()):
        (-ours.passes.score(batch).logprobs_N.sum()).backward()
    whole = dict(stock.named_parameters())
    for name, layer in _layers(ours):
        a, b = held[name]
        dw = whole[f"{name}.weight"].grad
        assert dw is not None and layer.lora_A.grad is not None and layer.lora_B.grad is not None
        assert_close(layer.lora_B.grad, ALPHA / RANK * dw @ a.t(), 2e-5, f"B of {name}")
        assert_close(layer.lora_A.grad, ALPHA / RANK * b.t() @ dw, 2e-5, f"A of {name}")


def _layers(ours: Learner) -> list[tuple[str, LoraLinear]]:
    return list(adapters(ours.model).items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_change_every_adapter_and_no_other_weight_by_a_bit(family_checkpoint, dtype):
    ours = adapted(family_checkpoint, dtype=dtype)
    before = {name: t.clone() for name, t in ours.model.state_dict().items()}
    for _ in range(3):
        ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), ours.version))
    for name, now in ours.model.state_dict().items():
        assert torch.equal(now, before[name]) == (".lora_" not in name), name
    plain = load_policy(family_checkpoint, torch.float32).state_dict()
    for name, weight in plain.items():
        assert torch.equal(before[name], weight.to(before[name].dtype)), name


def test_the_optimizer_holds_adapters_only(family_checkpoint):
    ours = trained(family_checkpoint, steps=1)
    layers = adapters(ours.model)
    numbers = sum(RANK * (layer.in_features + layer.out_features) for layer in layers.values())
    held = [p for group in ours.optimizer.adam.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == numbers
    moments = [s for p in held for s in ours.optimizer.adam.state[p].values() if s.ndim]
    assert sum(m.numel() for m in moments) == 2 * numbers
    assert [n for n, p in ours.model.named_parameters() if p.grad is not None] == []


def test_in_bfloat16_the_frozen_weights_have_no_float32_copy(checkpoint):
    ours = adapted(checkpoint, dtype="bfloat16")
    for name, p in ours.model.named_parameters():
        assert p.dtype == (torch.float32 if ".router." in name else torch.bfloat16), name
    assert all(p.dtype == torch.float32 for p in ours.optimizer.masters.values())


def test_of_past_versions_the_adapters_are_kept_and_score_as_they_did(family_checkpoint):
    ours = trained(family_checkpoint, steps=1, keep_versions=2)
    said = ours.logprobs(samples())
    early = [replace(s, id=f"early-{s.id}") for s in with_rollout_logprobs(samples(), said, 1)]
    ours.step(with_rollout_logprobs(samples(), said, 1))
    assert set(ours.past_weights) == {0, 1}
    assert all(".lora_" in name for kept in ours.past_weights.values() for name in kept)
    moved = flat(ours.logprobs(samples())) - flat(said)
    assert moved.abs().mean() > 1e-3
    assert ours.step(early).metrics["parity/mean_abs_dlogp"] < 1e-5


def test_what_is_published_is_small_and_named_as_peft_names_it(family_checkpoint, tmp_path):
    ours = trained(family_checkpoint, steps=1)
    size = write_weights(ours.snapshot(torch.bfloat16), tmp_path / "version-1.safetensors")
    tensors = load_file(tmp_path / "version-1.safetensors")
    whole = sum(2 * p.numel() for p in load_policy(family_checkpoint, torch.float32).parameters())
    assert size < whole / 8
    assert len(tensors) == 2 * len(adapters(ours.model))
    for name, layer in adapters(ours.model).items():
        a = tensors[f"base_model.model.{name}.lora_A.weight"]
        b = tensors[f"base_model.model.{name}.lora_B.weight"]
        assert a.dtype == b.dtype == torch.bfloat16
        assert a.shape == (RANK, layer.in_features) and b.shape == (layer.out_features, RANK)


def test_a_saved_policy_is_merged_and_stock_transformers_computes_the_same(
    family_checkpoint, tmp_path
):
    ours = trained(family_checkpoint)
    ours.save(tmp_path / "out")
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = flat(ours.logprobs(samples()))
    assert_close(stock_scores(stock), found, 1e-5, "stock transformers")
    again = flat(learner(tmp_path / "out").logprobs(samples()))
    assert_close(again, found, 1e-5, "our own loader")


def test_a_saved_policy_has_its_adapter_beside_it_as_peft_writes_it(family_checkpoint, tmp_path):
    ours = trained(family_checkpoint)
    ours.save(tmp_path / "out")
    folder = tmp_path / "out" / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
    assert config["base_model_name_or_path"] == str(family_checkpoint)
    assert config["target_modules"] == list(lora(family_checkpoint).targets)
    tensors = load_file(folder / "adapter_model.safetensors")
    found = stock_scores(by_hand(family_checkpoint, tensors))
    assert_close(found, flat(ours.logprobs(samples())), 1e-5, "base and adapter")


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(checkpoint, tmp_path):
    ours = trained(checkpoint, keep_versions=2)
    ours.save_state(tmp_path / "step_2")
    ours.wait_saved()
    again = adapted(checkpoint, keep_versions=2)
    again.load_state(tmp_path / "step_2")
    assert (again.version, set(again.past_weights)) == (2, {0, 1})
    batch = with_rollout_logprobs(samples(), ours.logprobs(samples()), 2)
    losses = [one.step(batch).metrics["loss/loss"] for one in (ours, again)]
    assert losses[0] == losses[1]
    assert ours.logprobs(samples()) == again.logprobs(samples())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_checkpoint_is_merged_with_its_adapter_beside_it(
    family_checkpoint, tmp_path, dtype
):
    ours = trained(family_checkpoint, dtype=dtype)
    ours.save_state(tmp_path / "step_2")
    ours.wait_saved()
    export_policy(tmp_path / "step_2", tmp_path / "out", "float32")
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(adapters(ours.model))
    # A rounded weight can change which expert is chosen: the reference has the weights that were trained on.
    wanted = stock_scores(by_hand(family_checkpoint, tensors, dtype))
    assert_close(stock_scores(stock), wanted, 1e-5, "by hand")


@pytest.mark.parametrize("kind", ["linear", "turn"])
def test_a_critic_is_trained_beside_adapters(checkpoint, kind):
    """Two steps: the second batch is valued under the weights of both adapters and critic before."""
    loss = LossConfig(kind="ppo", max_completion_tokens=20)
    critic = CriticConfig(kind=kind)
    ours = adapted(checkpoint, loss=loss, advantage="gae", critic=critic, keep_versions=1)
    ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), 0))
    ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), 0))
    critics = dict(ours.scorer.critic.named_parameters(prefix="critic"))
    assert critics and critics.keys() <= ours.optimizer.masters.keys()
    assert critics.keys() <= ours.past_weights[1].keys()
    assert all(p.requires_grad for p in critics.values())


def test_a_layer_that_the_policy_does_not_have_is_named(checkpoint):
    config = LoraConfig(rank=2, alpha=4, targets=("o_proj", "k_proj"))
    model = load_policy(checkpoint, torch.float32)
    with pytest.raises(ValueError, match=r"no linear layer 'k_proj', it has o_proj, q_a_proj, q_b"):
        add_adapters(model, config)
