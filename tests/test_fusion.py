"""Fusion of models: each method against its equations written out in numpy, element by element, and whole
folders, refused ones and interrupted ones among them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rl.cli import app
from trainer.fusion.config import FusionConfig
from trainer.fusion.deltas import (
    conflicts,
    dropped,
    generator,
    largest,
    normalised,
    sce,
    ties,
    weighted_sum,
)
from trainer.fusion.fuse import Fusion
from trainer.small.init_model import init_checkpoint

WEIGHTS = (0.5, 0.2, 0.3)


def vectors(seed: int = 0, shape: tuple[int, ...] = (5, 7)) -> torch.Tensor:
    """Task vectors of three models, some elements of which are 0."""
    draw = torch.Generator().manual_seed(seed)
    found = torch.randn(3, *shape, generator=draw)
    return (
        found
        * (torch.rand(found.shape, generator=draw) > 0.1)
        * torch.tensor([1.0, 3.0, 0.2]).view(3, *(1,) * len(shape))
    )


def by_element(delta_MX: torch.Tensor, of_element) -> np.ndarray:
    """`of_element(the models' numbers)` of each element."""
    rows = delta_MX.numpy().astype(np.float64).reshape(len(delta_MX), -1)
    return np.array([of_element(rows[:, i]) for i in range(rows.shape[1])]).reshape(
        delta_MX.shape[1:]
    )


def agreeing_mean(values, weights, sign) -> float:
    chosen = [(v, w) for v, w in zip(values, weights, strict=True) if v * sign > 0]
    total = sum(w for _, w in chosen)
    return sum(v * w for v, w in chosen) / total if total else 0.0


def trimmed(row: np.ndarray, density: float) -> np.ndarray:
    keep = math.ceil(density * row.size)
    order = np.argsort(-np.abs(row.reshape(-1)), kind="stable")[:keep]
    found = np.zeros(row.size)
    found[order] = row.reshape(-1)[order]
    return found.reshape(row.shape)


def test_a_weighted_sum_is_task_arithmetic():
    delta = vectors()
    wanted = by_element(delta, lambda v: sum(w * x for w, x in zip(WEIGHTS, v, strict=True)))
    assert np.allclose(weighted_sum(delta, torch.tensor(WEIGHTS)).delta_X, wanted, atol=1e-6)


def test_normalised_task_vectors_have_the_mean_of_the_norms_and_their_own_directions():
    delta = vectors()
    delta[2] = 0
    norms = [math.sqrt(sum(x * x for x in one.flatten().tolist())) for one in delta]
    found = normalised(delta)
    mean = sum(norms) / 3
    assert torch.linalg.vector_norm(found[0]).item() == pytest.approx(mean, rel=1e-5)
    assert torch.allclose(found[1], delta[1] * (mean / norms[1]), rtol=1e-5)
    assert (found[2] == 0).all()


def test_dropout_keeps_the_expectation_and_the_share():
    delta = torch.ones(2, 400, 500)
    found = dropped(delta, 0.7, generator(0, "a"))
    kept = (found != 0).double().mean().item()
    assert kept == pytest.approx(0.3, abs=0.005)
    assert found[found != 0].unique().tolist() == pytest.approx([1 / 0.3])
    assert torch.equal(found, dropped(delta, 0.7, generator(0, "a")))
    assert not torch.equal(found, dropped(delta, 0.7, generator(0, "b")))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_a_sign_and_averages_who_agrees(density):
    delta = vectors(1)
    rows = np.stack([trimmed(one.numpy().astype(np.float64), density) for one in delta])

    def elected(values) -> float:
        sign = np.sign(sum(w * v for w, v in zip(WEIGHTS, values, strict=True)))
        return agreeing_mean(values, WEIGHTS, sign)

    wanted = by_element(torch.tensor(rows), elected)
    found = ties(delta, torch.tensor(WEIGHTS), density)
    assert np.allclose(found.delta_X, wanted, atol=1e-6)
    assert (found.took_MX.any(0) == (torch.tensor(wanted) != 0)).all()


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_sce_selects_by_variance_weighs_by_energy_and_erases_the_minority(density):
    delta = vectors(2)
    rows = delta.numpy().astype(np.float64)
    variance = np.array([[rows[:, i, j].var() for j in range(7)] for i in range(5)])
    keep = math.ceil(density * variance.size)
    mask = variance >= np.sort(variance.reshape(-1))[-keep]
    rows = rows * mask
    energy = [np.mean(one**2) for one in rows]
    eta = [e / sum(energy) for e in energy]
    wanted = by_element(torch.tensor(rows), lambda v: agreeing_mean(v, eta, np.sign(v.sum())))
    assert np.allclose(sce(delta, density).delta_X, wanted, atol=1e-5)


def test_no_change_at_all_merges_to_none():
    nothing = torch.zeros(3, 4, 4)
    for found in (sce(nothing, 1.0), ties(nothing, torch.tensor(WEIGHTS), 0.2)):
        assert torch.equal(found.delta_X, torch.zeros(4, 4))
    assert torch.equal(normalised(nothing), nothing)
    assert conflicts(nothing) == 0


def test_the_largest_share_counts_up_and_conflicts_count_opposed_elements():
    assert largest(torch.arange(10.0), 0.25).nonzero().flatten().tolist() == [7, 8, 9]
    assert largest(torch.zeros(10), 0.2).sum() == 2
    assert conflicts(torch.tensor([[1.0, 1.0, 0.0, -1.0], [-1.0, 1.0, -1.0, 0.0]])) == 0.25


@pytest.fixture(scope="module")
def family_of_models(tmp_path_factory) -> dict[str, Path]:
    """A tiny base and two models of which some weights have moved."""
    root = tmp_path_factory.mktemp("models")
    corpus = ["the orders of a calculator and its sensors"] * 50
    init_checkpoint(root / "base", family="qwen3_moe", preset="tiny", corpus=corpus, seed=0)
    weights = load_file(root / "base" / "model.safetensors")
    for number in (1, 2):
        shutil.copytree(root / "base", root / f"m{number}")
        draw = torch.Generator().manual_seed(number)
        moved = {
            n: t + 0.01 * number * torch.randn(t.shape, generator=draw) for n, t in weights.items()
        }
        save_file(moved, root / f"m{number}" / "model.safetensors", metadata={"format": "pt"})
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def models(family_of_models, tmp_path) -> dict[str, Path]:
    """Copies that a test may spoil."""
    return {name: shutil.copytree(path, tmp_path / name) for name, path in family_of_models.items()}


def fuse(models, out, base: bool = True, **settings):
    found = Fusion(
        [models["m1"], models["m2"]], models["base"] if base else None, FusionConfig(**settings)
    )
    return found.write(out, lambda done, total: None)


def test_plain_averaging_of_folders_is_the_mean_and_transformers_loads_it(models, tmp_path):
    report = fuse(models, tmp_path / "out", base=False, weights=(3, 1))
    one, other = (load_file(models[n] / "model.safetensors") for n in ("m1", "m2"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, 0.75 * one[name] + 0.25 * other[name], atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, found["lm_head.weight"])
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        models["m1"] / "tokenizer.json"
    ).read_bytes()
    assert report.kinds()[-1].conflicts is None


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("method", "more"),
    [("task", {"scale": 2.0}), ("ties", {}), ("dare", {"density": 0.4}), ("sce", {"drop": 0.3})],
)
def test_folders_are_merged_tensor_by_tensor_as_the_method_says(models, tmp_path, method, more):
    fuse(models, tmp_path / "out", method=method, normalise=True, router="base", **more)
    base, one, other = (load_file(models[n] / "model.safetensors") for n in ("base", "m1", "m2"))
    found = load_file(tmp_path / "out" / "model.safetensors")
    equal = torch.tensor([0.5, 0.5])
    for name, tensor in found.items():
        if ".gate." in name:
            assert torch.equal(tensor, base[name])
            continue
        delta = normalised(torch.stack([one[name] - base[name], other[name] - base[name]]))
        draw = generator(0, name)
        wanted = {
            "task": lambda d, draw=draw: 2 * weighted_sum(d, equal).delta_X,
            "ties": lambda d, draw=draw: ties(d, equal, 0.2).delta_X,
            "dare": lambda d, draw=draw: weighted_sum(dropped(d, 0.6, draw), equal).delta_X,
            "sce": lambda d, draw=draw: sce(dropped(d, 0.3, draw), 1.0).delta_X,
        }[method](delta)
        assert torch.allclose(tensor, base[name] + wanted, atol=1e-6), name


@pytest.mark.heavy
@pytest.mark.parametrize("router", ["average", "base", "method", 2])
def test_the_router_goes_its_own_way(models, tmp_path, router):
    report = fuse(models, tmp_path / "out", method="ties", router=router)
    [name] = [t.name for t in report.tensors if "layers.0.mlp.gate" in t.name]
    base, one, other = (
        load_file(models[n] / "model.safetensors")[name] for n in ("base", "m1", "m2")
    )
    wanted = {
        "average": (one + other) / 2,
        "base": base,
        "method": base
        + ties(torch.stack([one - base, other - base]), torch.tensor([0.5, 0.5]), 0.2).delta_X,
        2: other,
    }[router]
    found = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert torch.allclose(found, wanted, atol=1e-6)
    how = {t.name: t.how for t in report.tensors}
    assert how[name] == (
        "ties" if router == "method" else f"model {router}" if router == 2 else router
    )


def test_the_report_says_how_far_each_model_is_and_what_was_taken(models, tmp_path):
    report = fuse(models, tmp_path / "out", method="ties", density=1.0)
    written = json.loads((tmp_path / "out" / "fusion.json").read_text(encoding="utf-8"))
    name = "lm_head.weight"
    [row] = [t for t in written["tensors"] if t["name"] == name]
    base, one, other = (
        load_file(models[n] / "model.safetensors")[name] for n in ("base", "m1", "m2")
    )
    assert row["norms"] == pytest.approx([(one - base).norm().item(), (other - base).norm().item()])
    opposed = ((one - base) * (other - base) < 0).double().mean().item()
    assert row["conflicts"] == pytest.approx(opposed)
    # Where the two part the larger change wins; elsewhere both are taken.
    larger = ((one - base).abs() > (other - base).abs()).double()
    assert row["took"][0] == pytest.approx(
        (1 - opposed) + (larger * ((one - base) * (other - base) < 0)).mean().item(), abs=1e-6
    )
    kinds = {one.kind: one for one in report.kinds()}
    assert kinds["all"].parameters == sum(t.numel for t in report.tensors)
    assert {"embedding", "attention", "experts", "router", "norm", "head"} <= kinds.keys()


def test_shards_are_fused_into_shards_in_the_dtype_that_was_asked_for(models, tmp_path):
    for name in ("base", "m2"):
        split(models[name])
    fuse(models, tmp_path / "out", method="task", dtype="bfloat16")
    fuse({**models, "base": models["m1"]}, tmp_path / "whole", method="task")
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file in files:
        with safe_open(out / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                assert index["weight_map"][name] == file
                assert tensors.get_tensor(name).dtype == torch.bfloat16
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def split(folder: Path) -> None:
    """Make two shards of a folder's one file."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8"
    )


def change_config(folder: Path, **values) -> None:
    file = folder / "config.json"
    found = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(found), encoding="utf-8")


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def another_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    found["added_tokens"][0]["content"] += "x"
    file.write_text(json.dumps(found), encoding="utf-8")


NAME = "model.layers.0.mlp.gate.weight"
SPOILED = {
    "another family": (lambda f: change_config(f, model_type="llama"), "family"),
    "another function": (lambda f: change_config(f, rms_norm_eps=0.5), "rms_norm_eps"),
    "quantized": (lambda f: change_config(f, quantization_config={"bits": 4}), "quantized"),
    "a missing tensor": (lambda f: change_weights(f, lambda w: w.pop(NAME)), NAME),
    "another shape": (
        lambda f: change_weights(f, lambda w: w.update({NAME: w[NAME][:2].clone()})),
        NAME,
    ),
    "a quantized tensor": (
        lambda f: change_weights(f, lambda w: w.update({NAME: w[NAME].to(torch.float8_e4m3fn)})),
        "quantized",
    ),
    "not a number": (
        lambda f: change_weights(f, lambda w: w[NAME].fill_(math.nan)),
        "not finite",
    ),
    "another tokenizer": (another_vocabulary, "tokenizer"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-10]
        ),
        "not whole",
    ),
    "gone": (shutil.rmtree, "no such folder"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("case", SPOILED)
def test_what_does_not_fit_is_one_sentence_and_leaves_nothing(models, tmp_path, case):
    spoil, said = SPOILED[case]
    spoil(models["m2"])
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["model", "fuse", str(out), *(str(models[n]) for n in ("m1", "m2"))]
    )
    assert done.exit_code == 2, done.output
    assert said in done.stderr and str(models["m2"]) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "slerp"], "--method"),
        (["--method", "sce"], "--base"),
        (["--density", "0.5"], "density"),
        (["--method", "ties", "--density", "1.5"], "--density"),
        (["--weights", "1,2,3"], "weights"),
        (["--weights", "a"], "--weights"),
        (["--router", "7"], "no model 7"),
        (["--router", "best"], "--router"),
        (["--normalise"], "normalise"),
        (["--dtype", "int8"], "--dtype"),
    ],
)
def test_a_bad_option_is_one_sentence(family_of_models, tmp_path, arguments, said):
    models = [str(family_of_models[n]) for n in ("m1", "m2")]
    done = CliRunner().invoke(app, ["model", "fuse", str(tmp_path / "out"), *models, *arguments])
    assert done.exit_code == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_interrupted_fusion_leaves_no_folder(models, tmp_path):
    fusion = Fusion([models["m1"], models["m2"]], None, FusionConfig())

    def interrupted(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fusion.write(tmp_path / "out", interrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "m1", "m2"]


def test_a_tied_head_that_one_folder_repeats_is_left_out(models, tmp_path):
    for name in ("base", "m1", "m2"):
        change_config(models[name], tie_word_embeddings=True)
    change_weights(models["m2"], lambda w: w.pop("lm_head.weight"))
    report = fuse(models, tmp_path / "out", method="task")
    assert "lm_head.weight" not in {t.name for t in report.tensors}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.tie_word_embeddings


def test_the_command_prints_a_table_and_refuses_a_folder_that_is_there(models, tmp_path):
    paths = [str(models[n]) for n in ("m1", "m2")]
    out = tmp_path / "out"
    arguments = ["model", "fuse", str(out), *paths, "--base", str(models["base"])]
    done = CliRunner().invoke(app, [*arguments, "--method", "sce", "--normalise"])
    assert done.exit_code == 0, done.output
    assert "attention" in done.stdout and "parameters of 2 models, by sce" in done.stdout
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "exists already" in done.stderr
