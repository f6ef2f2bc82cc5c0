"""Carries out `dorado judge …` and `dorado reward pairs`, from their options to what they print or write."""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, cast

import typer

from envs.chat_model import ChatModel, ModelFault
from envs.settings import BadSettings
from reward.judges.principles import (
    Principles,
    UnreadablePrinciples,
    dumped,
    read_principles,
)
from reward.model_judge import (
    SCORED,
    JudgeSettings,
    ModelJudge,
    bound,
    check_settings,
    find_model_judge,
)
from reward.registry import Judge, UnknownJudge
from rl.config_error import ConfigError
from rl.judge_tools.evaluate import evaluate
from rl.judge_tools.labelled import Pair, read_labelled, read_questions, trajectory_of
from rl.judge_tools.pairs import Agents, rows_of
from rl.judge_tools.tuning import Outcome, Tried, Tuner, split
from rl.model_table import ModelTable, ServeConfig
from rl.models.http_wire import key_of
from rl.models.server import ServerFailed
from rl.models.service import ModelService

OK, FAILED = 0, 1
# The address of a model that a judge by rules does not ask.
NOBODY = "http://127.0.0.1:9"
T = TypeVar("T")
# To begin with, where no file of principles is given.
SEED_PRINCIPLES = Principles(
    (
        "It does what the question asks, all of it, in the form that was asked for.",
        "It says nothing that is wrong or that it cannot know.",
        "Each sentence adds something; nothing is said twice.",
        "It is concrete: it shows things rather than praising them in general words.",
        "Its parts follow from each other, and its end belongs to its beginning.",
        "Its tone fits who speaks and who reads.",
    )
)
SEED_FLAWS = (
    "it repeats one thought in other words",
    "it leaves out a part of what was asked, and covers that up",
    "it uses general praise in place of anything concrete",
    "one fact in it is wrong",
    "its tone does not fit the reader",
)


@dataclass(frozen=True)
class Asked:
    """How a command reaches a model: options of `dorado judge`, under their names there."""

    served: str
    key_env: str
    max_model_len: int
    at_once: int = 4

    def table(self, model: str, *, asks: bool, judge: str = "") -> ModelTable:
        """The settings of the service for a URL or a checkpoint folder. asks: one is needed. judge: who asks.
        Raises ConfigError."""
        if not model and asks:
            raise ConfigError(
                "--model: give a URL, such as http://127.0.0.1:8000/v1, or a checkpoint folder"
            )
        common = {
            "name": "judge",
            "use": "reward" if judge in SCORED else "chat",
            "model": self.served,
            "concurrency": self.at_once,
            "key_env": self.key_env,
        }
        if not model or model.startswith(("http://", "https://")):
            return ModelTable.model_validate({**common, "url": model or NOBODY, "hold_seconds": 60})
        if not (Path(model) / "config.json").is_file():
            raise ConfigError(f"--model: {model} is no URL and no checkpoint folder")
        serve = ServeConfig(max_model_len=self.max_model_len, max_num_seqs=self.at_once)
        return ModelTable.model_validate({**common, "path": model, "serve": serve})


def eval_command(
    file: Path,
    model: str,
    judge: str,
    config: str,
    asked: Asked,
    *,
    again: int,
    most: int,
    as_json: bool,
) -> int:
    """Print what a judge is worth. Returns the exit code; raises ConfigError."""
    rows = read_labelled(file)
    rows = rows[:most] if most else rows
    found, settings = _judge(judge, config)
    table = asked.table(model, asks=found.asks, judge=judge)

    async def act(service: ModelService) -> int:
        outcome = await evaluate(rows, found, settings, service, again=again, at_once=asked.at_once)
        state = service.state()
        numbers = outcome.figures
        if as_json:
            record = {"judge": judge, "version": outcome.version, **numbers}
            record |= {"calls": state.calls, "cached": state.cached, "tokens": state.tokens}
            typer.echo(json.dumps(record | {"faults_said": outcome.faults[:5]}, indent=1))
        else:
            for name, value in numbers.items():
                typer.echo(f"{name:18} {value:.3f}".replace(".000", ""))
            typer.echo(f"version            {outcome.version or '-'}; {state.line}")
            for said in outcome.faults[:5]:
                typer.echo(f"fault: {said}", err=True)
        return OK if outcome.seen else FAILED

    return _with_model(table, act)


def tune_command(
    file: Path,
    out: Path,
    model: str,
    asked: Asked,
    *,
    principles: Path | None,
    writer: str,
    rounds: int,
    confidence: float,
    seed: int,
    as_json: bool,
) -> int:
    """Tune principles into a folder. Returns the exit code; raises ConfigError."""
    if out.exists():
        raise ConfigError(f"{out} exists already")
    pairs = [row for row in read_labelled(file) if isinstance(row, Pair)]
    try:
        first = read_principles(principles) if principles else SEED_PRINCIPLES
        splits = split(pairs, seed)
    except UnreadablePrinciples as error:
        raise ConfigError(f"--principles: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from None
    table = asked.table(model, asks=True)
    second = asked.table(writer, asks=True) if writer else None

    async def tuned(detector: ChatModel, other: ChatModel) -> int:
        out.mkdir(parents=True)
        settings = JudgeSettings(max_tokens=1024)
        tuner = Tuner(
            detector,
            other,
            splits,
            settings,
            confidence=confidence,
            seed=seed,
            hear=lambda tried: _note(tried, out / "tuning.jsonl"),
        )
        outcome = await tuner.tune(first, SEED_FLAWS, rounds)
        _tell(outcome, out, len(splits.test), as_json=as_json)
        return OK

    async def act(service: ModelService) -> int:
        if second is None:
            return await tuned(service, service)
        async with _running(second) as other:
            return await tuned(service, other)

    return _with_model(table, act)


def _note(tried: Tried, log: Path) -> None:
    """Write down a proposal and what became of it."""
    with log.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(tried)) + "\n")
    how = "accepted" if tried.accepted else "dropped"
    why = tried.fault or f"{tried.better} better, {tried.worse} worse, chance {tried.chance:.2g}"
    typer.echo(f"round {tried.round}: {how}: {why}", err=True)


def _tell(outcome: Outcome, out: Path, pairs: int, *, as_json: bool) -> None:
    """Write what came of a tuning into its folder, and print it. pairs: how many it was tested on."""
    (out / "principles.toml").write_text(dumped(outcome.principles), encoding="utf-8")
    record = {
        "before": outcome.before,
        "after": outcome.after,
        "accepted": sum(one.accepted for one in outcome.tried),
        "proposals": len(outcome.tried),
        "flaws": outcome.flaws,
        "version": outcome.principles.version,
    }
    (out / "result.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    typer.echo(
        f"{out}/principles.toml: {record['accepted']} of {record['proposals']} proposals accepted; "
        f"test pairs judged right {outcome.before[0]:.2f} -> {outcome.after[0]:.2f} "
        f"({outcome.after[1]:.2f} to {outcome.after[2]:.2f}, {pairs} pairs)"
    )


def pairs_command(
    questions: Path,
    out: Path,
    model: str,
    writer: str,
    asked: Asked,
    *,
    answers: int,
    looks: int,
    most: int,
    seed: int,
    as_json: bool,
) -> int:
    """Write preference pairs of agents. Returns the exit code; raises ConfigError."""
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: the file of pairs has to end in .jsonl")
    every = read_questions(questions)
    table = asked.table(model, asks=True)
    second = asked.table(writer, asks=True) if writer else None
    done = _questions_in(out)
    left = [one for one in every if one not in done]
    if not left:
        return _told_pairs(out, 0, Counter(), as_json=as_json)

    async def made(critic: ChatModel, writing: ChatModel) -> int:
        agents = Agents(writing, critic, answers, looks, most)
        counts: Counter[str] = Counter()
        with out.open("a", encoding="utf-8") as file:
            async for rows in rows_of(left, agents, asked.at_once, seed, counts):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
        return _told_pairs(out, len(left), counts, as_json=as_json)

    async def act(service: ModelService) -> int:
        if second is None:
            return await made(service, service)
        async with _running(second) as other:
            return await made(service, other)

    return _with_model(table, act)


def _questions_in(out: Path) -> set[str]:
    """The questions of a file of pairs, which is made where there is none; a line whose writer was killed
    half-way is cut off. Raises ConfigError."""
    try:
        with out.open("a+b") as file:
            file.seek(0)
            data = file.read()
            end = data.rfind(b"\n") + 1
            if end < len(data):
                try:
                    json.loads(data[end:])
                    file.write(b"\n")
                except ValueError:
                    data = data[:end]
                    file.truncate(end)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}") from None
    return {one.question for one in read_labelled(out)} if data.strip() else set()


def _told_pairs(out: Path, questions: int, counts: Counter[str], *, as_json: bool) -> int:
    """Print what came of it. Returns the exit code: 1 where no question gave a pair."""
    said = [name for name, _ in counts.most_common() if name.startswith("fault: ")]
    numbers = {name: count for name, count in sorted(counts.items()) if name not in said}
    if as_json:
        record = {"out": str(out), "questions": questions, "counts": numbers}
        typer.echo(json.dumps(record | {"faults_said": said[:5]}, indent=1))
    else:
        told = ", ".join(f"{name} {count}" for name, count in numbers.items())
        typer.echo(f"{out}: {counts['pairs']} pairs of {questions} questions ({told})")
        for one in said[:5]:
            typer.echo(one, err=True)
    return OK if counts["pairs"] or not questions else FAILED


def play_command(model: str, judge: str, config: str, asked: Asked) -> int:
    """Judge what a person writes, until the input ends."""
    found, settings = _judge(judge, config)
    if found.group:
        raise ConfigError(f"--judge: {judge!r} judges groups; play one that judges single answers")
    table = asked.table(model, asks=found.asks, judge=judge)

    async def act(service: ModelService) -> int:
        each = cast(Judge, bound(found, judge, [service] if found.asks else [], settings))
        while (question := _text("question")) and (answer := _text("answer")):
            trajectory = trajectory_of(question, answer, {})
            try:
                typer.echo(str(await each(trajectory.task, trajectory)))
            except (ModelFault, ValueError) as error:
                typer.echo(f"fault: {error}")
        return OK

    return _with_model(table, act)


def _text(what: str) -> str:
    """Lines up to an empty one; "" at the end of the input."""
    typer.echo(f"{what}:", err=True)
    lines: Sequence[str] = list(iter(lambda: _line(), ""))
    return "\n".join(lines)


def _line() -> str:
    try:
        return input()
    except EOFError:
        return ""


def _judge(name: str, config: str) -> tuple[ModelJudge, dict[str, object]]:
    try:
        settings = json.loads(config or "{}")
        if not isinstance(settings, dict):
            raise ValueError("a JSON object is wanted")
        found = find_model_judge(name)
        check_settings(found, settings)
    except UnknownJudge as error:
        raise ConfigError(f"--judge: {error}") from None
    except BadSettings as error:
        raise ConfigError(f"--config: {error}") from None
    except ValueError as error:
        raise ConfigError(f"--config: {error}") from None
    return found, settings


@asynccontextmanager
async def _running(table: ModelTable) -> AsyncGenerator[ModelService]:
    """The service, started, and ended in whatever way."""
    with tempfile.TemporaryDirectory(prefix="dorado-judge-") as folder:
        say: Callable[[str], None] = lambda said: typer.echo(said, err=True)  # noqa: E731
        log = Path(folder) / "vllm.log"
        service = ModelService(table, key_of(table.key_env), log, say)
        try:
            if table.url != NOBODY:
                await service.start()
            yield service
        finally:
            await service.close()


def _with_model(
    table: ModelTable, act: Callable[[ModelService], Coroutine[object, object, int]]
) -> int:
    async def run() -> int:
        async with _running(table) as service:
            return await act(service)

    try:
        return asyncio.run(run())
    except (ServerFailed, ModelFault) as error:
        typer.echo(f"error: {error}", err=True)
        return FAILED
