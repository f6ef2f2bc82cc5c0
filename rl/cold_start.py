"""Makes the run's first weights: from a checkpoint, as a new policy, or by a cold start on demonstrations.

A cold start is the same for the same settings, so its result is kept in `<runs_dir>/.cache/` under a
hash of everything it depends on, and made only once.
"""

import asyncio
import hashlib
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from envs.env import Task, say
from envs.message import Message, ToolCall
from envs.registry import split_file
from envs.session import EnvFault, HostFault, Opening, demonstrate
from rl.config import RunConfig
from rl.env_table import EnvTable
from trainer.families.family import Unsupported

if TYPE_CHECKING:
    from rollout.renderer import Renderer
    from trainer.sample import TrainSample

# Texts of this many tasks per environment train a new policy's tokenizer.
CORPUS_TASKS = 200
# Demonstrations that are played at once.
AT_ONCE = 64
Report = Callable[[str, int, int, float], None]
Check = Callable[[Path], None]
Alter = Callable[[Message, Opening], Message]
Demonstration = tuple[Opening, list[Message], dict[str, float]]


class ColdStartError(Exception):
    """The first policy cannot be made; the message is one sentence."""


def first_checkpoint(
    config: RunConfig, report: Report, check: Check = lambda folder: None
) -> tuple[str, bool]:
    """Return the checkpoint to start from (a folder or a Hub name), and True if it was made just now.

    `report(stage, step, steps, loss)` is called while a cold start runs. `check(folder)` looks at a new
    policy's tokenizer before anything is trained. Raises ColdStartError, and what `check` raises.
    """
    if (kept := kept_checkpoint(config)) is not None:
        if config.model.init is not None:
            check(Path(kept))
        return kept, False
    folder = _kept_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be making the same one: each works on a folder of its own, the first to end wins.
    partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
    try:
        make_cold_start(config, partial, report, check)
        (partial / "done").touch()
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(folder), True


def kept_checkpoint(config: RunConfig) -> str | None:
    """Return the checkpoint to start from where it need not be made, else None."""
    if config.model.init is None and config.sft is None:
        return config.model.path or config.model.hub or ""
    folder = _kept_folder(config)
    return str(folder) if (folder / "done").exists() else None


def _kept_folder(config: RunConfig) -> Path:
    return Path(config.runs_dir) / ".cache" / f"cold-start-{_key(config)}"


def make_cold_start(
    config: RunConfig, folder: Path, report: Report, check: Check = lambda folder: None
) -> None:
    """Write the cold-started policy into `folder`. Raises ColdStartError, and what `check` raises."""
    try:
        _make_cold_start(config, folder, report, check)
    except (OSError, FloatingPointError, Unsupported) as error:  # disk, Hub, training, policy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ColdStartError(f"cold start: {reason}") from error


def _make_cold_start(config: RunConfig, folder: Path, report: Report, check: Check) -> None:
    start = config.model.path or config.model.hub
    if config.model.init is not None:
        from trainer.small.init_model import init_checkpoint

        init_checkpoint(
            folder,
            family=config.model.init.family,
            preset=config.model.init.preset,
            corpus=list(corpus(config)),
            seed=config.seed_of(config.seed),
        )
        start = str(folder)
        check(folder)
    if config.sft is None:
        return
    assert start is not None, "RunConfig has exactly one source of the policy"
    from rollout.renderer import Renderer
    from trainer.sft_ranks import SftError, make_sft

    renderer = Renderer(start, config.model.format)
    samples = demonstrations(config, renderer)
    steps = config.sft.updates(len(samples))
    try:
        make_sft(
            start,
            samples,
            config.sft,
            config.learner.model_copy(update={"threads": None}),
            folder,
            seed=config.seed_of(config.seed),
            report=lambda step, loss: report("cold start", step + 1, steps, loss),
        )
    except SftError as error:
        raise ColdStartError(f"cold start: {error}") from error
    renderer.tokenizer.save_pretrained(folder)


def make_tokenizer(config: RunConfig, folder: Path) -> None:
    """Write the tokenizer alone that a new policy (`model.init`) will have. Raises ColdStartError."""
    from trainer.small.presets import VOCAB_SIZE
    from trainer.small.tokenizer import train_tokenizer

    assert config.model.init is not None, "only a new policy has a tokenizer that is to be made"
    size = VOCAB_SIZE[config.model.init.preset]
    train_tokenizer(corpus(config), size).save_pretrained(folder)


def corpus(config: RunConfig) -> Iterator[str]:
    """Yield the texts that environments and experts exchange, to train a new tokenizer on."""
    for table in config.env:
        tasks = _tasks(table, config.seed_of(config.seed), CORPUS_TASKS)
        for opening, said, _ in _play(table, tasks, [None] * len(tasks)):
            for tool in opening.tools:
                yield f"{tool.name}({json.dumps(tool.parameters)}) {tool.description}"
            for message in (*opening.messages, *said):
                yield message.content
                for call in message.tool_calls:
                    yield " ".join([call.name, *(f"{k} {v}" for k, v in call.arguments.items())])


def _tasks(table: EnvTable, seed: int, count: int) -> list[Task]:
    """Return the first train tasks; every other one is noisy where the environment trains with noise."""
    tasks = list(itertools.islice(table.make().tasks("train", seed), count))
    if table.noise is None:
        return tasks
    level = table.noise.level
    return [replace(t, noise=level) if i % 2 else t for i, t in enumerate(tasks)]


def _play(
    table: EnvTable, tasks: Sequence[Task], alters: Sequence[Alter | None]
) -> list[Demonstration]:
    """Demonstrate these tasks and return the episodes in the tasks' order.

    Up to `AT_ONCE` are played at once, because a tool may wait.
    """
    room = asyncio.Semaphore(AT_ONCE)
    # Found once: a look through the installed packages takes longer than an episode.
    pattern = table.make()

    async def play(task: Task, alter: Alter | None) -> Demonstration:
        async with room:
            try:
                return await demonstrate(type(pattern)(pattern.config), task, alter)
            except (EnvFault, HostFault) as fault:
                raise ColdStartError(f"env {table.label!r}: task {task.id}: {fault}") from fault

    async def play_all() -> list[Demonstration]:
        return await asyncio.gather(*map(play, tasks, alters))

    return asyncio.run(play_all())


class Slips:
    """Makes a demonstrator hasty: `slip` alters a share of its turns.

    A task's slips depend on the seed alone, not on the tasks played beside it.
    """

    def __init__(self, share: float, seed: str) -> None:
        self.share = share
        self.rng = random.Random(seed)
        self.happened = False

    def __call__(self, message: Message, opening: Opening) -> Message:
        if self.rng.random() >= self.share:
            return message
        self.happened = True
        return slip(message, opening, self.rng)


def slip(message: Message, opening: Opening, rng: random.Random) -> Message:
    """Replace a tool call by a hasty demonstrator's error: a call of a wrong tool, or giving up.

    The wrong tool is one that takes the same arguments; where there is none, the demonstrator gives up.
    """
    if not message.tool_calls:
        return message
    call = message.tool_calls[0]
    others = [
        tool.name
        for tool in opening.tools
        if tool.name != call.name and set(tool.parameters["properties"]) == set(call.arguments)
    ]
    if not others:
        return say("?")
    return Message("assistant", tool_calls=(ToolCall(rng.choice(others), call.arguments),))


def demonstrations(config: RunConfig, renderer: "Renderer") -> "list[TrainSample]":
    """Play demonstrations of train tasks and return them as samples.

    Raises ColdStartError where an expert fails a task without a slip of ours.
    """
    from trainer.sample import TrainSample

    assert config.sft is not None, "only a run with [sft] has demonstrations"
    samples: list[TrainSample] = []
    for table in config.env:
        tasks = _tasks(table, config.seed_of(config.seed), config.sft.demonstrations)
        slips = [
            Slips(config.sft.slip, f"{config.seed}/{table.label}/{i}") for i in range(len(tasks))
        ]
        for task, slipped, (opening, said, rewards) in zip(
            tasks, slips, _play(table, tasks, slips), strict=True
        ):
            if not slipped.happened and _failed(rewards):
                raise ColdStartError(
                    f"env {table.label!r}: its expert fails task {task.id}: {rewards}"
                )
            ids, learn = renderer.demonstration(opening.messages, opening.tools, said)
            zeros = (0.0,) * len(ids)
            samples.append(
                TrainSample(
                    id=task.id,
                    env=table.label,
                    token_ids=tuple(ids),
                    loss_mask=tuple(learn),
                    rollout_logprobs=zeros,
                    advantages=zeros,
                    versions=(0,) * len(ids),
                )
            )
    return samples


def _failed(rewards: Mapping[str, float]) -> bool:
    """True where an expert's episode is worth nothing; a term of costs may be 0 or less."""
    return bool(rewards) and rewards.get("solved", sum(rewards.values())) <= 0


def _key(config: RunConfig) -> str:
    """Hash everything that the cold start depends on, our own source files included."""
    relevant = {
        "model": config.model.model_dump(),
        "sft": config.sft.model_dump() if config.sft else None,
        "env": [(t.id, t.config, t.noise and t.noise.level) for t in config.env],
        "learner": [config.learner.dtype, config.learner.micro_batch_tokens],
        "router": config.learner.router.model_dump(exclude={"replay"}),
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    root = Path(__file__).parent.parent
    for package in ("envs", "trainer", "rollout"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.read_bytes())
    digest.update(Path(__file__).read_bytes())
    for table in config.env:
        file = split_file(table.id)
        if file is not None:
            digest.update(file[0].read_bytes())
    if config.model.path is not None:
        for file in sorted(Path(config.model.path).glob("*.safetensors")):
            digest.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
