"""`dorado reward pairs | train | eval`: preference pairs, reward models from them, and how well they fit."""

import json
import random
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rl.commands import require
from rl.config_error import ConfigError

if TYPE_CHECKING:
    from rl.preference_data import PreferencePair
    from rollout.renderer import Renderer
    from trainer.reward_heads import Heads
    from trainer.reward_model import Preference, RewardModel, RewardTraining
    from trainer.reward_scores import Anchor, TrainingScores

app = typer.Typer(no_args_is_help=True, help="Train reward models, and look at them.")
FAILED = 1
LOG = "training.jsonl"
# Pairs whose scores the folder keeps.
MOST_SCORED = 500
# Between two states of a training that the same command goes on from.
KEEP_SECONDS = 60.0
Data = Annotated[
    list[str], typer.Option(help="Pairs: a file, or a data set on the Hub. Several times.")
]
Split = Annotated[str, typer.Option(help="Of a data set on the Hub.")]
Tokens = Annotated[int, typer.Option(min=2, help="Of one forward pass.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="The policy to begin with: a folder or a run.")],
    out: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    data: Data,
    split: Split = "train",
    weight: Annotated[
        list[str] | None,
        typer.Option(help="Of an aspect in the score: NAME=NUMBER (default 1). Several times."),
    ] = None,
    heldout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the prompts that is held out.")
    ] = 0.1,
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Pairs to evaluate on, in place of --heldout.")
    ] = None,
    epochs: Annotated[float, typer.Option(min=0.001, help="Passes over the pairs.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of an update.")] = 16,
    lr: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = 1e-5,
    micro_batch_tokens: Tokens = 4096,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the order and the held-out prompts.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a reward model by Bradley and Terry's loss on rows of prompt, chosen and rejected.

    Rows with an aspect train a head of that name; the score is the weighted sum of the heads.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already")
    if not lr > 0:
        raise ConfigError(f"--lr: {lr:g} has to be above 0")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype: {dtype!r} has to be float32 or bfloat16")
    pairs = _read(data, split)
    heads = _heads(pairs, weight or [])
    if eval_data:
        trained, held = pairs, _read(eval_data, split)
    else:
        from rl.preference_data import heldout_split

        trained, held = heldout_split(pairs, heldout, seed)
    _check_sides(trained, held, heads)
    require("torch", "transformers")
    from trainer.config import OptimConfig
    from trainer.reward_model import RewardTraining

    folder, renderer = _policy(model)
    settings = RewardTraining(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_tokens=micro_batch_tokens,
        optim=OptimConfig(lr=lr),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        device=device,
        seed=seed,
    )
    from rl.preference_data import preference_tokens

    tokens = [
        preference_tokens(one, renderer, micro_batch_tokens, heads) for one in (trained, held)
    ]
    found = _train(folder, tokens[0], tokens[1], held, settings, out, renderer, heads)
    if as_json:
        typer.echo(json.dumps({"reward_model": str(out), **found}, indent=1))
        return
    typer.echo(f"{out}: trained on {len(trained)} pairs; held out: {_told(found)}")


@app.command()
def eval(
    model: Annotated[Path, typer.Argument(help="A reward model's folder.")],
    data: Data,
    split: Split = "train",
    micro_batch_tokens: Tokens = 4096,
    device: Device = "cpu",
    scores: Annotated[
        Path | None, typer.Option(help="A file for each pair's scores, JSONL.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a reward model on preference pairs: accuracy, loss, and how much length explains."""
    pairs = _read(data, split)
    if not model.is_dir():
        raise ConfigError(f"{model}: there is no such folder")
    if scores is not None and (scores.is_dir() or not scores.parent.is_dir()):
        raise ConfigError(f"--scores: {scores} cannot be a file: is its folder there?")
    require("torch", "transformers")
    from rl.preference_data import preference_tokens
    from trainer.reward_model import load_reward_model, score_pairs

    folder, renderer = _policy(str(model))
    try:
        found = load_reward_model(folder, device)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    tokens = preference_tokens(pairs, renderer, micro_batch_tokens, found.heads)
    scored = score_pairs(found, tokens, micro_batch_tokens, device)
    if scores is not None:
        lines = [
            json.dumps({"row": one.name, "chosen": chosen, "rejected": rejected} | _aspect(one))
            + "\n"
            for one, (chosen, rejected) in zip(tokens, scored, strict=True)
        ]
        scores.write_text("".join(lines), encoding="utf-8")
    report = _reported(tokens, scored)
    typer.echo(json.dumps(report, indent=1) if as_json else _told(report))


@app.command()
def pairs(
    questions: Annotated[Path, typer.Argument(help="Rows with a question or a prompt.")],
    out: Annotated[Path, typer.Argument(help="A file .jsonl; one that is there is gone on with.")],
    model: Annotated[str, typer.Option(help="The critic: a URL, or a checkpoint folder.")] = "",
    writer: Annotated[str, typer.Option(help="Writes and revises (default: the model).")] = "",
    answers: Annotated[int, typer.Option(min=1, help="Of each question.")] = 4,
    looks: Annotated[int, typer.Option(min=1, help="At each answer, which have to agree.")] = 2,
    most: Annotated[int, typer.Option(min=1, help="Pairs of one question.")] = 4,
    served: Annotated[str, typer.Option(help="The model's name at the server.")] = "",
    key_env: Annotated[str, typer.Option(help="The variable with the key.")] = "OPENAI_API_KEY",
    at_once: Annotated[int, typer.Option(min=1, help="Questions at the same time.")] = 8,
    max_model_len: Annotated[int, typer.Option(min=64, help="Of a served checkpoint.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Of which pairs are taken.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs by agents: a writer, a critic that looks again, a reviser of what is bad."""
    from rl.judge_tools.commands import Asked, pairs_command

    asked = Asked(served, key_env, max_model_len, at_once)
    counts = {"answers": answers, "looks": looks, "most": most, "seed": seed}
    code = pairs_command(questions, out, model, writer, asked, **counts, as_json=as_json)
    raise typer.Exit(code)


def _aspect(pair: "Preference") -> dict[str, str]:
    return {"aspect": pair.aspect} if pair.aspect else {}


def _heads(pairs: "list[tuple[str, PreferencePair]]", given: list[str]) -> "Heads":
    """The heads for these pairs. given: NAME=NUMBER. Raises ConfigError."""
    from trainer.reward_heads import heads_for

    weights: dict[str, float] = {}
    for one in given:
        name, _, number = one.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ConfigError(
                f"--weight: {one!r} has to be NAME=NUMBER, such as polite=2"
            ) from None
    try:
        return heads_for([pair.aspect for _, pair in pairs], weights)
    except ValueError as error:
        raise ConfigError(f"--weight: {error}") from None


def _check_sides(
    trained: "list[tuple[str, PreferencePair]]",
    held: "list[tuple[str, PreferencePair]]",
    heads: "Heads",
) -> None:
    """Raise ConfigError unless there are pairs to evaluate on, and to train each head on."""
    if not trained or not held:
        which = "train on" if not trained else "evaluate on"
        count = len(trained) + len(held)
        raise ConfigError(
            f"--heldout: of {count} pairs none is left to {which}: change it, or give --eval-data"
        )
    seen = {pair.aspect for _, pair in trained}
    missing = [name for name in heads.names if len(heads.names) > 1 and name not in seen]
    if missing and "" not in seen:
        raise ConfigError(
            f"--heldout: every pair of the aspect {missing[0]!r} is held out: change it, or give --eval-data"
        )


def _reported(pairs: "list[Preference]", scored: list[tuple[float, float]]) -> dict[str, Any]:
    """The report of all pairs, and of each aspect where they have some."""
    from trainer.reward_model import by_aspect, report_on

    found: dict[str, Any] = vars(report_on(pairs, scored))
    if aspects := by_aspect(pairs, scored):
        found |= {"aspects": {name or "overall": vars(one) for name, one in aspects.items()}}
    return found


def _read(data: list[str], split: str) -> "list[tuple[str, PreferencePair]]":
    from rl.chat_data import ChatSource
    from rl.preference_data import read_pairs

    sources = [ChatSource(name, None, split) for name in data]
    for source in sources:
        source.check()
    return list(read_pairs(sources))


def _policy(model: str) -> "tuple[Path, Renderer]":
    """The folder of a model, and the renderer of its conversations."""
    from rl.record.policy_folder import policy_folder
    from rollout.renderer import Renderer

    folder = policy_folder(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json, so it is no model's folder")
    try:
        return folder, Renderer(folder)
    except Exception as error:  # a tokenizer of others can be broken in any way
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{folder}: {first}") from None


def _train(
    start: Path,
    pairs: "list[Preference]",
    held: "list[Preference]",
    held_pairs: "list[tuple[str, PreferencePair]]",
    settings: "RewardTraining",
    out: Path,
    renderer: "Renderer",
    heads: "Heads",
) -> dict[str, Any]:
    """Train into a folder that gets its name when it is whole. Raises ConfigError, typer.Exit."""
    from rl.preference_data import anchors
    from trainer.families.family import Unsupported
    from trainer.reward_model import (
        begin_reward_model,
        save_reward_model,
        score_pairs,
        train_reward_model,
    )
    from trainer.reward_scores import write_scores
    from trainer.reward_state import TrainingState, training_key
    from trainer.sample_check import NotFinite

    partial = out.with_name(f".{out.name}.partial")
    state = TrainingState(partial, training_key(start, pairs, settings), KEEP_SECONDS)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        model: RewardModel = begin_reward_model(start, settings, heads)
        updates = settings.updates(len(pairs))
        with (partial / LOG).open("a", encoding="utf-8") as log:

            def report(update: int, loss: float) -> None:
                log.write(json.dumps({"update": update + 1, "loss": loss}) + "\n")
                if sys.stderr.isatty() or not (update + 1) % 10 or update + 1 == updates:
                    typer.echo(f"update {update + 1} of {updates}, loss {loss:.4f}", err=True)

            train_reward_model(model, pairs, settings, report, state)
        scored = score_pairs(model, held, settings.micro_batch_tokens, settings.device)
        found = _reported(held, scored)
        save_reward_model(model, partial, settings.dtype)
        renderer.tokenizer.save_pretrained(partial)
        whole = scored
        if len(heads.names) > 1:
            over_all = _over_all(held, heads)
            whole = score_pairs(model, over_all, settings.micro_batch_tokens, settings.device)
        known = anchors(held_pairs, whole)
        write_scores(partial, _training_scores(model, _over_all(pairs, heads), settings, known))
        (partial / "reward.json").write_text(
            json.dumps({"trained_on": len(pairs), "heldout": found}, indent=1),
            encoding="utf-8",
        )
        state.remove()
        _once_each(partial / LOG, updates)
        partial.rename(out)
    except (Unsupported, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConfigError(str(error)) from None
    except (OSError, NotFinite) as error:
        shutil.rmtree(partial, ignore_errors=True)
        typer.echo(f"error: {out} was not written: {error}", err=True)
        raise typer.Exit(FAILED) from None
    return found


def _over_all(pairs: "list[Preference]", heads: "Heads") -> "list[Preference]":
    """The pairs as the weighted sum of all heads compares them."""
    return [replace(one, weights=heads.weights) for one in pairs]


def _once_each(log: Path, updates: int) -> None:
    """Keep one line of each update: those behind the state that an interrupted part left are there twice."""
    last: dict[int, str] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # cut off by a kill
            last[int(json.loads(line)["update"])] = f"{line}\n"
    kept = (line for update, line in sorted(last.items()) if update <= updates)
    log.write_text("".join(kept), encoding="utf-8")


def _training_scores(
    model: "RewardModel",
    pairs: "list[Preference]",
    settings: "RewardTraining",
    anchors: "tuple[Anchor, ...]",
) -> "TrainingScores":
    """Scores of some of the pairs that were trained on, and the anchors."""
    from trainer.reward_model import score_pairs
    from trainer.reward_scores import TrainingScores

    some = random.Random(settings.seed).sample(pairs, min(len(pairs), MOST_SCORED))
    scored = score_pairs(model, some, settings.micro_batch_tokens, settings.device)
    return TrainingScores(tuple(sorted(score for both in scored for score in both)), anchors)


def _told(report: dict[str, Any]) -> str:
    aspects: dict[str, Any] = report.get("aspects", {})
    each = (f"\n  {n}: {one['accuracy']:.1%} of {one['pairs']}" for n, one in aspects.items())
    return (
        f"{report['accuracy']:.1%} of {report['pairs']} pairs right (the longer one: "
        f"{report['length_accuracy']:.1%}), loss {report['loss']:.3f}, mean gap {report['gap']:.3f}, its "
        f"correlation with length {report['length_correlation']:.2f}{''.join(each)}"
    )
