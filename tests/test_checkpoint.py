"""Checkpoints: what goes on from them, what they survive, what is refused, on one rank and on two."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import learner_process
import pytest
import torch
from learner_process import STEPS, batch, toy, toy_state, toy_step, watched, whole
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from typer.testing import CliRunner

from rl.cli import app
from trainer.checkpoint import CheckpointWriter, load
from trainer.checkpoint_folder import CheckpointError, latest, prune, read_record
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.learner import Learner
from trainer.policy import build_policy
from trainer.weights import write_checkpoint

pytestmark = pytest.mark.process

CONFIG = PreTrainedConfig(hidden_size=6)
HEAVY = [
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "transformers.models.longcat_flash.modeling_longcat_flash",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
]


@pytest.fixture(scope="module")
def processes():
    """Where processes begin with what takes long to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context


def learner(checkpoint: Path, keep_versions: int = 1, **config) -> Learner:
    settings = {"threads": 1, "optim": OptimConfig(lr=1e-3, warmup_steps=4)}
    loss = LossConfig(max_completion_tokens=20)
    return Learner(
        checkpoint,
        LearnerConfig(loss=loss, **{**settings, **config}),
        temperature=1.0,
        keep_versions=keep_versions,
    )


def save_toy(folder: Path, steps: int = 1) -> None:
    model, optimizer = toy()
    for _ in range(steps):
        toy_step(model, optimizer)
    writer = CheckpointWriter()
    state = toy_state(model, optimizer, {})
    writer.start(folder, state, CONFIG, updates=steps, version=steps, beside=lambda folder: None)
    writer.wait()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learner_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    family_checkpoint, tmp_path, dtype
):
    """With samples of the version before, momentum, the rate's position, and steps during the save."""
    ours = learner(family_checkpoint, dtype=dtype)
    for version in range(3):
        ours.step(batch(version))
    ours.save_state(tmp_path / "step_3")
    wanted = [watched(ours.step(batch(version)).metrics) for version in range(3, 6)]
    ours.wait_saved()
    other = learner(family_checkpoint, dtype=dtype)
    other.load_state(tmp_path / "step_3")
    assert (other.version, sorted(other.past_weights)) == (3, [2])
    assert [watched(other.step(batch(version)).metrics) for version in range(3, 6)] == wanted


def test_random_streams_go_on_where_they_were(tmp_path):
    torch.manual_seed(3)
    random.seed(4)
    random.gauss(0, 1)  # leaves a second number behind, which is part of the state
    save_toy(tmp_path / "step_1")

    def numbers() -> list[float]:
        return [*torch.rand(3).tolist(), random.random(), random.gauss(0, 1)]

    model, optimizer = toy()
    state = toy_state(model, optimizer, {})
    load(tmp_path / "step_1", state, CONFIG, past_like={})
    first = numbers()
    assert numbers() != first
    load(tmp_path / "step_1", state, CONFIG, past_like={})
    assert numbers() == first


@pytest.mark.slow
def test_a_learner_killed_at_any_moment_goes_on_with_the_losses_of_one_that_was_not(
    checkpoint, tmp_path, processes
):
    whole_log, log = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    unkilled = processes.Process(
        target=learner_process.train, args=(checkpoint, tmp_path / "whole", whole_log)
    )
    unkilled.start()
    rng = random.Random(5)
    folder = tmp_path / "killed"
    in_a_save = 0
    for _ in range(6):
        process = processes.Process(target=learner_process.train, args=(checkpoint, folder, log))
        process.start()
        wanted = lines(log) + rng.randint(0, 3)
        wait_for(lambda wanted=wanted: lines(log) >= wanted, process)
        if rng.random() < 0.6:
            wait_for(lambda: any(folder.glob("*.partial/*.distcp")), process)
        else:
            time.sleep(rng.uniform(0, 0.2))  # the moment is what is drawn
        process.kill()
        process.join()
        in_a_save += any(folder.glob("*.partial"))
    last = processes.Process(target=learner_process.train, args=(checkpoint, folder, log))
    last.start()
    for process in (last, unkilled):
        process.join(60)
        assert process.exitcode == 0
    wanted = dict(json.loads(line) for line in whole_log.read_text(encoding="utf-8").splitlines())
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert set(wanted) == {step for step, _ in found} == set(range(1, STEPS + 1))
    assert len(found) > STEPS, "steps whose save was killed were made again"
    assert all(losses == wanted[step] for step, losses in found)
    assert in_a_save >= 2, "some kills came while a checkpoint was written"
    assert latest(folder, print) == folder / f"step_{STEPS}"


def lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for(condition: Callable[[], bool], process) -> None:
    """Until it holds or the process has ended."""
    deadline = time.monotonic() + 60
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.slow  # three learners in processes of their own
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_of_some_ranks_is_read_by_another_number(tmp_path, processes, before, after):
    def on(ranks: int, act: str) -> dict[str, torch.Tensor]:
        started = [
            processes.Process(target=learner_process.rank, args=(n, ranks, tmp_path, act))
            for n in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
            assert process.exitcode == 0
        return torch.load(tmp_path / f"{act}.pt")

    saved, loaded = on(before, "save"), on(after, "load")
    for n in range(before):
        assert "step_1 exists already" in (tmp_path / f"refused-{n}").read_text(encoding="utf-8")
    assert {"weight 0.weight", "exp_avg 0.weight", "step 1.weight"} <= set(saved)
    assert "version 1 1.weight" in saved
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    model, optimizer = toy()
    past = {}
    state = toy_state(model, optimizer, past)
    record = load(tmp_path / "step_1", state, CONFIG, past_like=dict(model.named_parameters()))
    assert (record.updates, record.past_versions) == (2, [1])
    assert all(torch.equal(saved[name], value) for name, value in whole(state).items())
    plain, steps = toy()
    toy_step(plain, steps)
    toy_step(plain, steps)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(saved[f"weight {name}"], parameter, rtol=1e-5), name


def test_broken_checkpoints_are_passed_over_with_a_sentence_each(tmp_path):
    for step in (1, 2, 3, 10, 11):
        save_toy(tmp_path / f"step_{step}")
    (tmp_path / "step_11" / "learner.json").unlink()
    with (tmp_path / "step_10" / "__0_0.distcp").open("r+b") as file:
        file.truncate(100)
    (tmp_path / "step_3" / ".metadata").unlink()
    shutil.copytree(tmp_path / "step_2", tmp_path / "step_12.partial")
    (tmp_path / "notes").mkdir()
    said: list[str] = []
    assert latest(tmp_path, said.append) == tmp_path / "step_2"
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in said] == [
        "step_12.partial is no checkpoint",
        "step_11 is no checkpoint",
        "step_10 is no whole checkpoint",
        "step_3 is no whole checkpoint",
    ]
    assert "its save did not end" in said[0] and "it has no learner.json" in said[1]
    assert "__0_0.distcp has 100 bytes" in said[2] and ".metadata is missing" in said[3]
    assert latest(tmp_path / "nowhere", said.append) is None and len(said) == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"updates": 3}', '{"schema": 1, "odd": 2}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path, text):
    save_toy(tmp_path / "step_1")
    (tmp_path / "step_1" / "learner.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"step_1/learner\.json cannot be read"):
        read_record(tmp_path / "step_1")


def test_a_record_of_another_schema_is_refused(tmp_path):
    save_toy(tmp_path / "step_1")
    (tmp_path / "step_1" / "learner.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="has schema 99; this release reads 1"):
        read_record(tmp_path / "step_1")


def test_only_the_last_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 9, 10):
        save_toy(tmp_path / f"step_{step}")
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_11.partial")
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_10", "step_11.partial", "step_9"]
    prune(tmp_path, 5)
    assert latest(tmp_path, lambda said: None) == tmp_path / "step_10"


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(checkpoint, tmp_path):
    ours = learner(checkpoint)
    ours.save_state(tmp_path / "step_0")
    ours.step(batch(0))
    ours.wait_saved()
    with largest_file(1_000_000):
        ours.save_state(tmp_path / "step_1")
        with pytest.raises(CheckpointError) as caught:
            ours.wait_saved()
    assert str(caught.value) == (
        f"checkpoint {tmp_path}/step_1 could not be written: File too large"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step_0"], "its room is free again"
    ours.save_state(tmp_path / "step_1")
    ours.wait_saved()
    assert latest(tmp_path, pytest.fail) == tmp_path / "step_1"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/step_1 could not be written: Not a directory"):
        save_toy(tmp_path / "file" / "step_1")


def test_a_whole_checkpoint_is_never_written_over(tmp_path):
    save_toy(tmp_path / "step_1")
    before = (tmp_path / "step_1" / "__0_0.distcp").read_bytes()
    with pytest.raises(CheckpointError, match="step_1 exists already; nothing was written"):
        save_toy(tmp_path / "step_1", steps=2)
    assert (tmp_path / "step_1" / "__0_0.distcp").read_bytes() == before


def other_family(ours: dict[str, Path], tmp_path: Path) -> Path:
    return ours["qwen3_moe"]


def another(**changes):
    """A policy of the same family with other settings."""

    def make(ours: dict[str, Path], tmp_path: Path) -> Path:
        config = AutoConfig.from_pretrained(ours["longcat_flash"])
        config.update(changes)
        write_checkpoint(build_policy(config, torch.float32), tmp_path / "other", torch.float32)
        return tmp_path / "other"

    return make


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (other_family, "model_type is 'longcat_flash' there and 'qwen3_moe' here"),
        (another(moe_topk=2), "moe_topk is 3 there and 2 here"),
        (another(n_routed_experts=6), "n_routed_experts is 8 there and 6 here"),
        (
            another(rope_parameters={"rope_type": "default", "rope_theta": 5.0}),
            "rope_parameters is",
        ),
    ],
    ids=["family", "top k", "experts", "positions"],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(
    checkpoints, tmp_path, make, wanted
):
    ours = learner(checkpoints["longcat_flash"])
    ours.step(batch(0))
    ours.save_state(tmp_path / "step_1")
    ours.wait_saved()
    other = learner(make(checkpoints, tmp_path))
    before = {name: p.clone() for name, p in other.model.named_parameters()}
    with pytest.raises(CheckpointError, match="a checkpoint of another model") as caught:
        other.load_state(tmp_path / "step_1")
    assert str(caught.value).startswith(f"{tmp_path}/step_1/learner.json: ")
    assert wanted in str(caught.value)
    assert (other.version, other.past_weights) == (0, {})
    assert all(torch.equal(before[n], p) for n, p in other.model.named_parameters())


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)), r"1.weight is (3, 5) there"),
        (nn.Sequential(nn.Linear(6, 5)), "1.weight is (3, 5) there and missing here"),
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), "1.bias is missing there and (3,) here"),
    ],
    ids=["shape", "more there", "more here"],
)
def test_the_first_tensor_that_differs_is_named(tmp_path, model, wanted):
    save_toy(tmp_path / "step_1")
    state = toy_state(model, torch.optim.AdamW(model.parameters()), {})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "step_1", state, CONFIG, past_like={})
    assert str(caught.value).startswith(f"{tmp_path}/step_1: a checkpoint of another model: ")
    assert wanted in str(caught.value)


def test_an_exported_checkpoint_is_the_policy_that_was_saved(family_checkpoint, tmp_path):
    ours = learner(family_checkpoint)
    ours.step(batch(0))
    tokenizer = AutoTokenizer.from_pretrained(family_checkpoint)
    folder = tmp_path / "run" / "checkpoints"
    ours.save_state(folder / "step_1", beside=tokenizer.save_pretrained)
    logprobs = ours.logprobs(batch(0))
    ours.step(batch(1))
    ours.wait_saved()
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(folder / "step_1"), str(out)])
    assert done.exit_code == 0, done.output
    assert f"{out}: {ours.model.config.model_type}, " in done.stdout  # pyright: ignore
    assert learner(out).logprobs(batch(0)) == logprobs
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer.get_vocab()
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    _, unloaded = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(unloaded.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"], "nothing partial is left"


def test_export_finds_what_the_user_means_and_says_what_it_does_not_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = AutoConfig.for_model("qwen3_moe", **TINY)
    saved = learner_of(policy, tmp_path / "policy")
    for step in (1, 2):
        saved.save_state(Path("runs/one/checkpoints") / f"step_{step}")
    saved.wait_saved()

    def export(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["export", *arguments])
        return done.exit_code, done.output

    for number, arguments in enumerate(
        [("2", "--run", "runs/one"), ("2",), ("runs/one",), ("runs/one/checkpoints/step_2",)]
    ):
        code, said = export(arguments[0], f"out-{number}", *arguments[1:])
        assert code == 0 and "from runs/one/checkpoints/step_2" in said, said
    code, said = export("1", "half", "--dtype", "bfloat16")
    assert code == 0 and "in bfloat16" in said, said
    Path("runs/two/checkpoints").mkdir(parents=True)
    for arguments, wanted in [
        (("2", "out-0"), "error: out-0 exists already"),
        (("3", "x", "--run", "runs/one"), "runs/one has no checkpoint of step 3; there are 1, 2"),
        (("2", "x"), "error: --run: say of which run: runs/one, runs/two"),
        (("runs/two", "x"), "error: runs/two has no whole checkpoint"),
        (("elsewhere", "x"), "error: elsewhere is no checkpoint: there is no such folder"),
        (("policy", "x"), "error: policy is no checkpoint: it has no learner.json"),
        (("runs/one", "x", "--run", "runs/one"), "error: --run goes with the number of a step"),
    ]:
        code, said = export(*arguments)
        assert (code, said.count("\n")) == (2, 1) and wanted in said, said
    assert not Path("x").exists()


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "moe_intermediate_size": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "vocab_size": 32,
    "tie_word_embeddings": False,
}


def learner_of(config: PreTrainedConfig, folder: Path) -> Learner:
    write_checkpoint(build_policy(config, torch.float32), folder, torch.float32)
    return learner(folder)
