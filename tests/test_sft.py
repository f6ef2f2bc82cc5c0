"""Chats as training data: their tokens and loss against those made by hand, faults with their rows, and
training that packs, shares out and goes on."""

import json
import math
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from dorado_command import Command
from made_chats import made_chats
from safetensors.torch import load_file
from test_chat import WRONG
from typer.testing import CliRunner

from rl.chat_data import ChatSource, read_chats, token_rows
from rl.cli import app
from rl.config_error import ConfigError
from rl.preflight.models import check_model_folder
from rollout.renderer import Renderer
from trainer.batch import pack
from trainer.config import LearnerConfig, OptimConfig, SftConfig
from trainer.micro_batches import plan_micro_batches
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.scorer import Scorer
from trainer.sft import Keeping, SftStopped, batches, train_sft
from trainer.token_rows import TokenRows

CHATS = 2000


def written(folder: Path, rows: Sequence[object], name: str = "chats.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def rows_of(file: Path, renderer, most: int = 4096) -> TokenRows:
    return token_rows(read_chats([ChatSource(str(file))]), renderer, most, lambda rows: None).rows


@pytest.fixture(scope="module")
def chats(tmp_path_factory, renderer) -> TokenRows:
    made = made_chats(CHATS)
    return rows_of(written(tmp_path_factory.mktemp("chats"), [row for row, _ in made]), renderer)


@pytest.mark.heavy
def test_the_loss_mask_of_2000_chats_is_the_one_made_by_hand(chats, renderer):
    encode = renderer.tokenizer.encode
    assert len(chats) == CHATS
    for found, (_, pieces) in zip(chats, made_chats(CHATS), strict=True):
        ids, learn = [], []
        for text, learnt in pieces:
            of_piece = encode(text, add_special_tokens=False)
            ids += of_piece
            learn += [learnt] * len(of_piece)
        assert found.token_ids == tuple(ids)
        assert found.loss_mask == tuple(learn)


def test_chats_of_a_table_are_those_of_lines(tmp_path, renderer):
    from datasets import Dataset

    rows = []
    for row, _ in made_chats(40, seed=1):
        for message in row["messages"]:  # a column of a table has one type
            if isinstance(message["content"], list):
                message["content"] = message["content"][0]["text"]
            for one in message.get("tool_calls") or ():
                if isinstance(given := one["function"]["arguments"], str):
                    one["function"]["arguments"] = json.loads(given)
        rows.append({**row, "tools": json.dumps(row.get("tools", []))})
        if isinstance(row.get("tools"), str):
            rows[-1]["tools"] = row["tools"]
    # A call of another shape: the table gives every call its key too.
    odd = {"name": "add", "arguments": {"x": 1}}
    calls = {"role": "assistant", "content": "", "tool_calls": [{"id": "z", "function": odd}]}
    ends = [{"role": "tool", "content": "1"}, {"role": "assistant", "content": "1"}]
    rows.append({"messages": [{"role": "user", "content": "?"}, calls, *ends], "tools": "[]"})
    table = tmp_path / "chats.parquet"
    Dataset.from_list(rows).to_parquet(table)
    lines = rows_of(written(tmp_path, rows), renderer)
    assert list(rows_of(table, renderer)) == [
        TrainSample(**{**vars(s), "id": s.id.replace(".jsonl", ".parquet")}) for s in lines
    ]


FINE = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
BROKEN = {
    "JSON": ("{'messages': []}", "row 3: not valid JSON: "),
    "digits": ('{"n": ' + "9" * 5000 + "}", "row 3: not readable: Exceeds the limit"),
    "no object": ("[1]", "row 3: a row has to be an object, such as {...}, not [1]"),
    "an image": (
        json.dumps({**FINE, "image": "x"}),
        "row 3: the column 'image' holds 'x', which a",
    ),
    "a mark": (
        json.dumps(
            {"messages": [FINE["messages"][0], {"role": "assistant", "content": "<|end|>b"}]}
        ),
        "row 3: the assistant's text holds '<|end|>', which ends its turn",
    ),
    "long": (
        json.dumps({"messages": [{"role": "user", "content": "7" * 900}, FINE["messages"][1]]}),
        "row 3: its 90",
    ),
    **{kind: (json.dumps(row), f"row 3: {said}") for kind, (row, said) in WRONG.items()},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_malformed_file_is_one_sentence_with_the_row(tmp_path, renderer, kind):
    line, wanted = BROKEN[kind]
    file = tmp_path / "chats.jsonl"
    fine = json.dumps(FINE)
    file.write_text(f"{fine}\n\n{line}\n{fine}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        rows_of(file, renderer, most=500)
    said = str(caught.value)
    assert said.startswith(f"--data: {file}") and "\n" not in said
    assert wanted.removeprefix("row 3: ") in said and "row 3" in said


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("chats.jsonl", b"", "holds no chat"),
        ("chats.jsonl", b'{"messages": "\xff"}', "row 1: it is not UTF-8 (byte 0xff)"),
        ("chats.parquet", b"PAR1", "cannot be read: "),
        ("chats.txt", b"{}", "has to end in one of .jsonl"),
        ("none.jsonl", None, "does not exist"),
        (".", None, "is a folder: give its files"),
        ("no such name", None, "is neither a file that ends in one of"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path, renderer, name, content, wanted):
    file = tmp_path / name if "." in name else Path(name)
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        source = ChatSource(str(file))
        source.check()
        rows_of(file, renderer)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def gradients(scorer: Scorer, samples: Sequence[TrainSample], most: int) -> tuple[float, list]:
    """The mean loss and every gradient, in micro-batches of at most so many tokens."""
    scorer.zero_grad()
    total = 0.0
    learnt = sum(s.num_policy_tokens for s in samples)
    for chosen in plan_micro_batches([len(s.token_ids) for s in samples], most)[0]:
        loss = (
            -scorer(pack(samples, chosen, torch.device("cpu"), sharing=True)).logprobs_N.sum()
            / learnt
        )
        loss.backward()
        total += loss.item()
    return total, [p.grad.clone() for p in scorer.parameters() if p.grad is not None]


def packed_and_unpacked(samples: Sequence[TrainSample], checkpoint: Path) -> tuple[float, float]:
    """Relative differences of the loss and of the gradient, packed against one by one."""
    scorer = Scorer(load_policy(checkpoint, torch.float32), 1.0)
    packed, of_packed = gradients(scorer, samples, 4096)
    one_by_one, of_each = 0.0, None
    learnt = sum(s.num_policy_tokens for s in samples)
    for sample in samples:
        loss, found = gradients(scorer, [sample], 4096)
        share = sample.num_policy_tokens / learnt
        one_by_one += loss * share
        scaled = [g * share for g in found]
        of_each = (
            scaled if of_each is None else [a + b for a, b in zip(of_each, scaled, strict=True)]
        )
    assert of_each is not None
    gap = math.sqrt(
        sum((a - b).square().sum().item() for a, b in zip(of_packed, of_each, strict=True))
    )
    size = math.sqrt(sum(b.square().sum().item() for b in of_each))
    return abs(packed - one_by_one) / one_by_one, gap / size


@pytest.mark.heavy
def test_packed_chats_have_the_losses_and_gradients_of_chats_one_by_one(chats, checkpoint):
    loss, gradient = packed_and_unpacked(chats[:12], checkpoint)
    assert loss <= 1e-6 and gradient <= 1e-5


def test_batches_take_every_sample_once_in_a_pass_and_can_begin_later(chats):
    few = chats[:10]
    first = batches(few, 4, seed=3)
    found = [next(first) for _ in range(5)]
    assert sorted(s.id for batch in found[:5] for s in batch) == sorted(s.id for s in few * 2)
    later = batches(few, 4, seed=3, skip=3)
    assert [next(later), next(later)] == found[3:]


@pytest.mark.heavy
def test_an_interrupted_training_goes_on_with_the_losses_of_one_that_was_not(
    chats, checkpoint, tmp_path
):
    sft = SftConfig(steps=4, batch_size=2, optim=OptimConfig(lr=1e-3, warmup_steps=3))
    config = LearnerConfig(micro_batch_tokens=512, threads=1)
    losses: dict[str, list[float]] = {"whole": [], "parts": []}

    def train(name: str, keeping: Keeping | None):
        def report(step: int, loss: float) -> None:
            assert step == len(losses[name])
            losses[name].append(loss)

        return train_sft(checkpoint, chats[:7], sft, config, seed=1, report=report, keeping=keeping)

    whole = train("whole", None)
    folder = tmp_path / "checkpoints"
    asked = iter([False, True])
    with pytest.raises(SftStopped) as stopped:
        train("parts", Keeping(folder, every=1, minutes=0, stop=lambda: next(asked)))
    assert stopped.value.step == 2 and [path.name for path in folder.iterdir()] == ["step_2"]
    parts = train("parts", Keeping(folder, every=0, minutes=10))
    assert losses["parts"] == losses["whole"]
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_a_policy_is_trained_on_chats_interrupted_goes_on_and_two_ranks_make_the_same(
    tmp_path, checkpoint
):
    file = written(tmp_path, [row for row, _ in made_chats(400)])
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "demo"\nmodel = {{ path = "{checkpoint}" }}\nlearner = {{ micro_batch_tokens = 4096 }}\n'
        "sft = { steps = 8, batch_size = 16, optim = { lr = 1e-3 } }\n",
        encoding="utf-8",
    )
    command = ["sft", str(config), "--data", str(file)]
    code, said = Command(tmp_path, *command, "--out", "whole", "--sft.ranks", "1").wait()
    assert code == 0 and "policy: whole" in said and "left 0:" in said, said

    stopped = Command(tmp_path, *command, "--out", "parts", "--sft.ranks", "2")
    assert "update: 2/8" in stopped.read_until("update: 2/8")
    stopped.process.send_signal(signal.SIGINT)
    code, said = stopped.wait()
    assert code == 130 and "the same command goes on from there" in said, said
    assert not (tmp_path / "parts").exists()
    code, said = Command(
        tmp_path, *command, "--out", "parts", "--sft.ranks", "2", "--seed", "9"
    ).wait()
    assert code == 2 and "is of a training with other chats, another policy, seed or" in said
    code, said = Command(tmp_path, *command, "--out", "parts", "--sft.ranks", "2").wait()
    assert code == 0 and "update: 2/8" not in said, said

    logs = [
        (tmp_path / n / "training.jsonl").read_text("utf-8").splitlines()
        for n in ("whole", "parts")
    ]
    whole, parts = ([json.loads(line) for line in log] for log in logs)
    assert [one["update"] for one in parts] == list(range(1, 9))
    assert [one["loss"] for one in parts] == pytest.approx([one["loss"] for one in whole], rel=1e-4)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-3 * weight.norm(), name
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"whole", "parts"}


def test_the_command_says_what_is_wrong_before_anything_is_made(tmp_path, checkpoint):
    config = tmp_path / "run.toml"
    config.write_text(f'name = "demo"\nmodel = {{ path = "{checkpoint}" }}\n', encoding="utf-8")
    file = written(tmp_path, [FINE, {"messages": []}])

    def run(*options: str) -> str:
        result = CliRunner().invoke(app, ["sft", str(config), "--data", str(file), *options])
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "there is no [sft] section" in run("--out", str(tmp_path / "a"))
    steps = ["--sft.steps", "1"]
    assert f"--out: {tmp_path} exists already" in run("--out", str(tmp_path), *steps)
    assert "row 2: no message is the assistant's" in run("--out", str(tmp_path / "a"), *steps)
    assert "--subset and --split are of data sets" in run("--split", "test", *steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "run.toml"]


def test_a_new_policy_and_its_tokenizer_are_made_from_chats_in_sharegpts_form(tmp_path):
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"{n} + 1?"},
                {"from": "gpt", "value": f"{n + 1}"},
            ]
        }
        for n in range(8)
    ]
    config = tmp_path / "run.toml"
    config.write_text(
        'name = "demo"\nmodel = { init = { family = "qwen3_moe" } }\nlearner = { micro_batch_tokens = 512 }\n'
        "sft = { epochs = 1, batch_size = 4 }\n",
        encoding="utf-8",
    )
    out = tmp_path / "policy"
    command = ["sft", str(config), "--data", str(written(tmp_path, rows)), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "8 chats are in ShareGPT's form" in result.stdout and "2 updates of 4" in result.stdout
    check_model_folder(out)
    assert Renderer(out, "longcat").text([0]) == "<|pad|>"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "policy", "run.toml"]


def test_an_epoch_is_every_chat_once():
    assert SftConfig(epochs=2, batch_size=32).updates(2000) == 125
    assert SftConfig(epochs=0.5, batch_size=32).updates(10) == 1
    assert SftConfig(steps=7).updates(2000) == 7
    with pytest.raises(ValueError, match="steps and epochs both say how long"):
        SftConfig(steps=7, epochs=1)


def test_rows_of_tokens_are_the_samples_that_were_added():
    rng = random.Random(0)
    rows = TokenRows("chats")
    added = []
    for number in range(5):
        length = rng.randint(2, 9)
        ids = [rng.randrange(200_000) for _ in range(length)]
        learn = [False, *(rng.random() < 0.5 for _ in range(length - 1))]
        rows.add(f"row {number}", ids, learn)
        added.append((tuple(ids), tuple(learn)))
    assert [(s.token_ids, s.loss_mask) for s in rows] == added
    assert rows.num_tokens == sum(len(ids) for ids, _ in added)
    assert rows.num_learnt == sum(sum(learn) for _, learn in added)
