"""`dorado sft CONFIG --data …`: trains a policy on chats.

In: settings, and where the chats are. Out: a Hugging Face folder of the policy with its tokenizer, and in it
the loss of each update (`training.jsonl`). While it trains, all is in `<out>.partial`, checkpoints included:
the same command goes on from there after an interruption, and refuses to with other chats or another policy.
"""

import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envs.env import Env
from rl.chat_data import ChatRows, ChatSource, read_chats, texts_of, token_rows
from rl.cold_start import corpus
from rl.commands import interrupt, on_signals
from rl.config import RunConfig
from rl.config_error import ConfigError
from rl.env_table import EnvTable
from rl.preflight.models import check_model_folder
from rl.record.progress import Progress
from trainer.checkpoint_folder import CheckpointError
from trainer.families.family import Unsupported

if TYPE_CHECKING:
    from rollout.renderer import Renderer

# Chats whose texts train a new policy's tokenizer.
CORPUS_CHATS = 2000
RECORD, LOG, POLICY, CHECKPOINTS = "sft.json", "training.jsonl", "policy", "checkpoints"
# A new policy, before it is trained.
START = "start"


class ChatsConfig(RunConfig):
    """The settings of a run, which needs no environments where chats are what is trained on."""

    env: tuple[EnvTable, ...] = ()


class ChatTrainingError(Exception):
    """The training on chats cannot go on; the message is one sentence."""


class ChatTrainingStopped(Exception):
    """The training was asked to stop and can go on; the message is one sentence."""


def check(config: RunConfig, sources: Sequence[ChatSource], out: Path) -> None:
    """Raise ConfigError where the settings cannot be right, before anything is read."""
    if config.sft is None:
        raise ConfigError(
            "there is no [sft] section: it says how long and how fast to learn, such as epochs = 2 and "
            "optim = { lr = 1e-5 }"
        )
    if out.exists():
        raise ConfigError(f"--out: {out} exists already")
    if config.model.path is not None:
        check_model_folder(Path(config.model.path), trained=True)
    for source in sources:
        source.check()


@dataclass
class ChatTraining:
    """One training on chats; `run` does it once."""

    config: RunConfig
    sources: Sequence[ChatSource]
    out: Path
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where everything is until the policy is whole."""
        return self.out.with_name(f"{self.out.name}.partial")

    def run(self) -> None:
        """Train, and write the policy into `out`.

        Raises ConfigError for what is wrong with a row or a setting, ChatTrainingError, ChatTrainingStopped.
        """
        try:
            self._run()
        except (CheckpointError, FloatingPointError, OSError, Unsupported) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ChatTrainingError(reason) from error

    def _run(self) -> None:
        began = self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            start = self._start()
            renderer = self._renderer(start)
            found = self._read(renderer)
            self._claim(found)
        except BaseException:
            if not began:  # nothing has been trained: nothing stays behind
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._train(start, found)
        renderer.tokenizer.save_pretrained(self.folder / POLICY)
        shutil.copy(self.folder / LOG, self.folder / POLICY / LOG)
        (self.folder / POLICY).rename(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> str:
        """The policy to begin with; a new one is made here."""
        model = self.config.model
        if model.init is None:
            return model.path or model.hub or ""
        folder = self.folder / START
        if not folder.exists():
            from trainer.small.init_model import init_checkpoint

            self.progress.stage("a new policy")
            chats = itertools.islice(read_chats(self.sources), CORPUS_CHATS)
            texts = [text for _, chat in chats for text in texts_of(chat)]
            experts = [t for t in self.config.env if type(t.make()).expert is not Env.expert]
            texts += corpus(self.config.model_copy(update={"env": tuple(experts)}))
            partial = self.folder / f"{START}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            init_checkpoint(
                partial,
                family=model.init.family,
                preset=model.init.preset,
                corpus=texts,
                seed=self.config.seed_of(self.config.seed),
            )
            partial.rename(folder)
        return str(folder)

    def _renderer(self, start: str) -> "Renderer":
        from rollout.renderer import Renderer

        try:
            return Renderer(start, self.config.model.format)
        except Exception as error:  # a tokenizer of others can be broken in any way
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"model: {first}") from None

    def _read(self, renderer: "Renderer") -> ChatRows:
        from rollout.template_check import check_template

        self.progress.stage(f"chats: reading {', '.join(one.name for one in self.sources)}")
        found = token_rows(
            read_chats(self.sources),
            renderer,
            self.config.learner.micro_batch_tokens,
            lambda rows: self.progress.note(f"{rows:,} chats"),
        )
        try:
            check_template(renderer, roles=found.roles, turns=found.turns, one_sequence=True)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from None
        if found.sharegpt:
            self.progress.note(
                f"{found.sharegpt:,} chats are in ShareGPT's form: human is read as user, gpt as assistant, "
                "observation as a tool's result"
            )
        return found

    def _claim(self, found: ChatRows) -> None:
        """Say what the folder is of. Raises ConfigError where it is of another training."""
        config, sft = self.config, self.config.sft
        assert sft is not None, "`check` has passed"
        model = config.model.model_dump()
        own = [model, sft.batch_size, config.seed, found.rows.digest()]
        key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        file = self.folder / RECORD
        if file.exists() and json.loads(file.read_text(encoding="utf-8"))["key"] != key:
            raise ConfigError(
                f"--out: {self.folder} is of a training with other chats, another policy, seed or "
                "sft.batch_size: go on with those, remove the folder, or give another --out"
            )
        file.write_text(json.dumps({"key": key}), encoding="utf-8")

    def _train(self, start: str, found: ChatRows) -> None:
        from trainer.sft import Keeping, SftStopped
        from trainer.sft_ranks import SftError, make_sft

        config, sft, rows = self.config, self.config.sft, found.rows
        assert sft is not None, "`check` has passed"
        steps = sft.updates(len(rows))
        self.progress.note(
            f"{len(rows):,} chats of {rows.num_tokens:,} tokens, {rows.num_learnt:,} of them learnt: "
            f"{steps:,} updates of {sft.batch_size} chats, {steps * sft.batch_size / len(rows):.1f} passes"
        )
        self.progress.stage("training on chats")
        losses = _Losses(self.folder / LOG)

        def report(step: int, loss: float) -> None:
            losses.note(step + 1, loss)
            self.progress.updates("update", step + 1, steps, loss)

        keeping = Keeping(
            self.folder / CHECKPOINTS,
            config.checkpoint_every,
            config.checkpoint_minutes,
            stop=_stopped(),
            say=self.progress.note,
        )
        try:
            make_sft(
                start,
                rows,
                sft,
                # Nothing else is at work beside it, as engines are beside a run's learner.
                config.learner.model_copy(update={"threads": None}),
                self.folder / POLICY,
                seed=config.seed_of(config.seed),
                report=report,
                keeping=keeping,
            )
        except SftStopped as stopped:
            raise ChatTrainingStopped(
                f"interrupted after update {stopped.step} of {steps}: the same command goes on from there"
            ) from None
        except SftError as error:
            raise ChatTrainingError(str(error)) from error


class _Losses:
    """The loss of each update, a line each; those of updates that are made again give way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.began = False

    def note(self, update: int, loss: float) -> None:
        """Write the line of an update, the first of which is 1."""
        line = json.dumps({"update": update, "loss": loss}) + "\n"
        if not self.began:
            kept = "".join(f"{one}\n" for one in self.lines[: update - 1])
            self.file.write_text(kept, encoding="utf-8")
            self.began = True
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line)


def _stopped() -> Callable[[], bool]:
    """Have the first signal ask for a stop after the update in progress, and the second end it at once."""
    asked = threading.Event()

    def ask() -> None:
        if asked.is_set():
            interrupt()
        asked.set()

    on_signals(ask)
    return asked.is_set
