"""Reward models: rows into pairs, the loss against its equation, scores against transformers' own class, and
a small model that learns a preference which length says nothing of."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from rl.cli import app
from rl.preference_data import heldout_split, read_pair
from trainer.config import OptimConfig
from trainer.reward_heads import Heads, heads_for, read_heads
from trainer.reward_model import (
    Preference,
    RewardTraining,
    begin_reward_model,
    bradley_terry,
    load_reward_model,
    report_on,
    save_reward_model,
    score_pairs,
    train_reward_model,
)
from trainer.reward_scores import read_scores
from trainer.reward_state import TrainingState, training_key


def test_rows_of_all_forms_are_the_same_pair():
    user = {"role": "user", "content": "hi"}
    good, bad = ({"role": "assistant", "content": text} for text in ("hello", "no"))
    rows = [
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"prompt": [user], "chosen": [good], "rejected": bad},
        {"messages": [user], "chosen": "hello", "rejected": "no", "margin": 0},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "hi", "chosen": [user, good], "rejected": [user, bad]},
    ]
    found = [read_pair(row) for row in rows]
    assert all(one == found[0] for one in found)
    assert found[0].shared == 1 and found[0].margin == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "there is no column 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "there is no 'prompt' that it answers"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen: message 2"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' has to be a text or a list"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}, "'margin' has to be"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "'margin' is -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": math.nan}, "'margin' has to be"),
        (
            {
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                ],
            },
            "no message in common",
        ),
    ],
)
def test_a_wrong_row_is_one_sentence(row, said):
    with pytest.raises(ValueError, match=said):
        read_pair(row)


def test_a_prompt_is_on_one_side_of_the_split():
    rows = [
        (f"{n}", read_pair({"prompt": f"p{n // 3}", "chosen": f"a{n}", "rejected": "b"}))
        for n in range(300)
    ]
    trained, held = heldout_split(rows, 0.2, 0)
    assert len(trained) + len(held) == 300 and 30 <= len(held) <= 90
    prompts = [{pair.prompt_digest for _, pair in side} for side in (trained, held)]
    assert not prompts[0] & prompts[1]
    assert heldout_split(rows, 0.2, 1)[1] != held


def test_the_loss_is_bradley_and_terrys():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    margin = torch.tensor([0.0, 1.0])
    wanted = [-math.log(1 / (1 + math.exp(-d))) for d in (0.5, -6.0)]
    assert bradley_terry(chosen, rejected, margin).tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_report_counts_ties_as_one_half_and_says_what_length_explains():
    pairs = [
        Preference("a", (1, 2, 3), (1, 2)),
        Preference("b", (1, 2), (1, 2, 3)),
        Preference("c", (1, 2), (1, 3)),
    ]
    report = report_on(pairs, [(1.0, 0.0), (1.0, 2.0), (0.0, 0.0)])
    assert report.accuracy == 0.5 and report.length_accuracy == 0.5
    assert report.length_correlation == pytest.approx(1.0)
    losses = [math.log(1 + math.exp(-gap)) for gap in (1, -1, 0)]
    assert report.loss == pytest.approx(sum(losses) / 3)


def pairs_of(count: int, seed: int) -> list[Preference]:
    """Preferred is the answer with token 20 in it, whatever its length."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        prompt = tuple(draw.randrange(30, 60) for _ in range(4))
        rest = [
            tuple(draw.randrange(30, 60) for _ in range(draw.randrange(2, 6))) for _ in range(2)
        ]
        found.append(Preference(str(n), (*prompt, 20, *rest[0]), (*prompt, 21, *rest[1])))
    return found


def test_scores_do_not_depend_on_packing_and_are_those_of_transformers(checkpoints, tmp_path):
    start = checkpoints["qwen3_moe"]
    c = RewardTraining(micro_batch_tokens=64)
    model = begin_reward_model(start, c)
    with torch.no_grad():
        model.weight.copy_(
            torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    pairs = pairs_of(9, 0)
    packed = score_pairs(model, pairs, 64)
    alone = [score_pairs(model, [one], 64)[0] for one in pairs]
    for found, wanted in zip(packed, alone, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    save_reward_model(model, tmp_path / "rm", "float32")
    again = score_pairs(load_reward_model(tmp_path / "rm"), pairs, 200)
    assert again[3] == pytest.approx(packed[3], abs=1e-4)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert stock.config.num_labels == 1
    for one, found in zip(pairs[:3], packed, strict=False):
        with torch.no_grad():
            wanted = stock(torch.tensor([one.chosen])).logits.item()
        assert found[0] == pytest.approx(wanted, abs=1e-3)


def test_gradients_are_those_of_pairs_scored_one_by_one(checkpoint):
    pairs = pairs_of(5, 1)
    totals = []
    for tokens in (1000, 30):
        model = begin_reward_model(checkpoint, RewardTraining())
        losses: list[float] = []
        train_reward_model(
            model,
            pairs,
            RewardTraining(
                batch_size=5, epochs=2, micro_batch_tokens=tokens, optim=OptimConfig(lr=1e-3)
            ),
            lambda update, loss, losses=losses: losses.append(loss),
        )
        totals.append(losses)
    assert totals[0][0] == pytest.approx(math.log(2))
    assert totals[0] == pytest.approx(totals[1], abs=1e-4)
    assert totals[0][1] < totals[0][0]


@pytest.mark.heavy
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(checkpoint, tmp_path):
    pairs, heads = pairs_of(6, 2), []
    c = RewardTraining(batch_size=2, epochs=2, optim=OptimConfig(lr=1e-3))
    key = training_key(checkpoint, pairs, c)

    def trained(stop: int, state: TrainingState | None) -> tuple[list[int], int | None]:
        seen: list[int] = []

        def report(update: int, loss: float) -> None:
            if update == stop:
                raise KeyboardInterrupt
            seen.append(update)

        model = begin_reward_model(checkpoint, c)
        try:
            begun = train_reward_model(model, pairs, c, report, state)
        except KeyboardInterrupt:
            return seen, None
        heads.append(model.weight.detach().clone())
        return seen, begun

    assert trained(-1, None) == ([0, 1, 2, 3, 4, 5], 0)
    assert trained(3, TrainingState(tmp_path, key, 0)) == ([0, 1, 2], None)
    assert trained(-1, TrainingState(tmp_path, key, 0)) == ([3, 4, 5], 3)
    assert torch.equal(*heads), "bit by bit"
    other = training_key(checkpoint, pairs, c.model_copy(update={"seed": 1}))
    assert trained(0, TrainingState(tmp_path, other, 0)) == ([], None), "of another training"
    (tmp_path / "state.pt").write_bytes(b"PK cut off")
    assert trained(0, TrainingState(tmp_path, key, 0)) == ([], None)


def test_a_margin_is_asked_for_in_training(checkpoint):
    losses: list[float] = []
    one = Preference("a", (5, 6, 7), (5, 6, 8), margin=2.0)
    model = begin_reward_model(checkpoint, RewardTraining())
    train_reward_model(
        model, [one], RewardTraining(batch_size=1), lambda update, loss: losses.append(loss)
    )
    assert losses == [pytest.approx(math.log(1 + math.exp(2.0)))]


def test_an_aspect_trains_its_own_head_and_the_rest_the_weighted_sum(checkpoints, tmp_path):
    heads = heads_for(["short", "polite", ""], {"short": -2.0})
    assert heads == Heads(("polite", "short"), (1.0, -2.0))
    ids = (5, 6, 7), (5, 6, 8)
    pairs = [Preference(a, *ids, aspect=a, weights=heads.compared(a)) for a in ("polite", "")]
    model = begin_reward_model(checkpoints["qwen3_moe"], RewardTraining(), heads)
    c = RewardTraining(batch_size=1, optim=OptimConfig(lr=1e-3))
    train_reward_model(model, pairs[:1], c, lambda update, loss: None)
    polite, short = model.weight.detach()
    assert polite.abs().sum() > 0 and short.abs().sum() == 0
    with torch.no_grad():
        model.weight[1] = torch.linspace(-1, 1, model.weight.shape[1])
    [own, whole] = score_pairs(model, pairs, 64)
    save_reward_model(model, tmp_path / "rm", "float32")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert read_heads(tmp_path / "rm") == heads and stock.config.num_labels == 2
    with torch.no_grad():
        wanted = stock(torch.tensor([ids[0]])).logits[0].tolist()
    assert own[0] == pytest.approx(wanted[0], abs=1e-3)
    assert whole[0] == pytest.approx(heads.score(wanted), abs=1e-3)
    assert score_pairs(load_reward_model(tmp_path / "rm"), pairs, 64)[1] == pytest.approx(
        whole, abs=1e-4
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (["nice=1"], "--weight: no pair has the aspect 'nice'; there are polite, short"),
        (["polite"], "--weight: 'polite' has to be NAME=NUMBER"),
        (["polite=0", "short=0"], "every aspect has weight 0"),
        (["polite=inf"], "finite"),
    ],
)
def test_a_wrong_weight_is_a_sentence_before_anything_is_read(weights, said, tmp_path):
    data = write_aspects(tmp_path / "pairs.jsonl", 4)
    given = [word for one in weights for word in ("--weight", one)]
    done = call("train", tmp_path, tmp_path / "rm", "--data", data, *given)
    assert done.exit_code == 2 and said in done.stderr, done.stderr


def write_aspects(file: Path, count: int) -> Path:
    """Polite and short are preferred, each in pairs of its own, and are independent of each other."""
    draw, rows = random.Random(1), []
    for n in range(count):
        words = [draw.choice(["order", "sensor", "memory"]) for _ in range(3)]
        texts = [(f"{words[0]} please", f"{words[0]} never"), (words[1], " ".join(words * 2))]
        chosen, rejected = texts[n % 2]
        row = {"prompt": f"question {n} {words[2]}", "chosen": chosen, "rejected": rejected}
        rows.append(json.dumps(row | {"aspect": ("polite", "short")[n % 2]}) + "\n")
    file.write_text("".join(rows), encoding="utf-8")
    return file


def write_rows(file: Path, count: int) -> Path:
    draw = random.Random(0)
    rows = []
    for n in range(count):
        words = [draw.choice(["order", "sensor", "memory"]) for _ in range(3)]
        rows.append(
            {
                "prompt": f"question {n} {' '.join(words)}",
                "chosen": f"{words[0]} please and thanks",
                "rejected": f"{words[1]} no and never",
            }
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def call(*arguments: object):
    return CliRunner().invoke(app, ["reward", *map(str, arguments)])


@pytest.mark.heavy
def test_the_commands_train_evaluate_and_leave_nothing_behind_on_an_error(checkpoint, tmp_path):
    data = write_rows(tmp_path / "pairs.jsonl", 60)
    out = tmp_path / "rm"
    done = call("train", checkpoint, out, "--data", data, "--lr", 3e-3, "--epochs", 3, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["accuracy"] > 0.9
    assert (out / "tokenizer.json").is_file() and (out / "training.jsonl").is_file()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["pairs.jsonl", "rm"]
    assert not (out / "state.pt").exists()
    kept = read_scores(out)
    assert kept is not None and len(kept.scores) > 80 and kept.spread > 0
    assert {len(one.messages) for one in kept.anchors} == {2}
    scores = tmp_path / "scores.jsonl"
    done = call("eval", out, "--data", data, "--scores", scores)
    assert done.exit_code == 0 and "of 60 pairs right" in done.stdout
    rows = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60 and rows[6]["row"].endswith("row 7")
    assert call("train", checkpoint, out, "--data", data).exit_code == 2
    aspects, two = write_aspects(tmp_path / "aspects.jsonl", 24), tmp_path / "two"
    steps = ("--lr", 3e-3, "--heldout", 0.4, "--weight", "short=0.5")
    done = call("train", checkpoint, two, "--data", aspects, *steps, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["aspects"]
    assert {name: one["pairs"] > 0 for name, one in told.items()} == {"polite": True, "short": True}
    assert read_heads(two) == Heads(("polite", "short"), (1.0, 0.5))
    done = call("eval", two, "--data", aspects)
    assert "\n  polite: " in done.stdout and "of 24 pairs right" in done.stdout
    done = call("eval", out, "--data", aspects)
    assert done.exit_code == 2 and "row 1: 'aspect': there is no head 'polite'" in done.stderr
    done = call("eval", checkpoint, "--data", data)
    assert done.exit_code == 2 and "is no reward model" in done.stderr
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": 3}\n', encoding="utf-8"
    )
    done = call("train", checkpoint, tmp_path / "no", "--data", bad)
    assert done.exit_code == 2 and "bad.jsonl: row 2: there is no column 'chosen'" in done.stderr
    done = call("train", checkpoint, tmp_path / "no", "--data", data, "--micro-batch-tokens", 8)
    assert done.exit_code == 2 and "--micro-batch-tokens" in done.stderr
    assert not (tmp_path / "no").exists()
