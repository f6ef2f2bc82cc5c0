"""`verifiers`: an environment of the package verifiers, played by its own harness.

    config = { python = "/opt/vf/bin/python", settings = { taskset = { id = "my-taskset" } } }
    config = { python = "/opt/vf3/bin/python", environment = "wordle", arguments = { num_examples = 500 } }

The package is at work in an interpreter of its own, and asks the policy by the gateway, as any agent does:
tasks, prompts, tools, users and rewards are its. `settings` is what verifiers (v1) takes as `[env]`;
`environment` names one of its older kind (`load_environment`, verifiers 0.3). Flows out: the rewards by their
names, with verifiers' weights in them, so that their sum is verifiers' reward. Refuses environments where the
policy plays several seats.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from pydantic import Field, PositiveFloat, model_validator

from envs.agents.access import ModelAccess
from envs.dynamic_tool import as_object
from envs.env import Env, EnvConfig, Split, Task
from envs.interop.child_episodes import ended
from envs.interop.interpreter import ChildInterpreter, ForeignError, child_interpreter
from envs.message import JsonObject, Message
from envs.session import HostFault

# Tasks that are asked for at once.
PAGE = 256


class VerifiersConfig(EnvConfig):
    """python: an interpreter that has verifiers and the taskset. settings: verifiers' `[env]`: `taskset.id`
    is needed; a seat (`agent`) may name a harness and a runtime. environment, arguments: instead, one of the
    older kind, and what its `load_environment` takes.

    heldout: what of `taskset`, or of `arguments`, is otherwise for held-out tasks. eval_dataset: held-out
    tasks are the older kind's own. Without either a tenth of the tasks is held out, by the hash of their
    content. paths: folders in which modules are looked for too. model: the policy's name. request_seconds:
    for loading a page of tasks.
    """

    python: str
    settings: JsonObject = {}
    environment: str = ""
    arguments: JsonObject = {}
    heldout: JsonObject = {}
    eval_dataset: bool = False
    paths: tuple[str, ...] = ()
    model: str = Field("policy", min_length=1)
    request_seconds: PositiveFloat = 120.0

    @model_validator(mode="after")
    def _is_one(self) -> "VerifiersConfig":
        taskset: object = self.settings.get("taskset")
        if bool(self.environment) == bool(self.settings):
            raise ValueError(
                'name a taskset (settings = { taskset = { id = "…" } }) or an environment of the older kind '
                '(environment = "…")'
            )
        known = as_object(taskset)
        if self.settings and not isinstance(known.get("id"), str):
            raise ValueError('settings names no taskset: taskset = { id = "…" }')
        if self.settings and (self.arguments or self.eval_dataset):
            raise ValueError("arguments and eval_dataset are of an environment of the older kind")
        return self

    @property
    def script(self) -> str:
        """The file that runs in the interpreter."""
        return "verifiers_legacy_server.py" if self.environment else "verifiers_server.py"

    def told(self, heldout: bool, limits: JsonObject | None = None) -> str:
        """Tell what the child makes an environment of; as text, by which it keeps one."""
        changed = self.heldout if heldout else {}
        if self.environment:
            given = {"id": self.environment, "args": {**self.arguments, **changed}}
        else:
            given = {**self.settings, "taskset": {**self.settings["taskset"], **changed}}
        paths = [str(Path(path).absolute()) for path in self.paths]
        return json.dumps({"env": given, "paths": paths, "limits": limits or {}}, sort_keys=True)


class Verifiers(Env):
    """One task of a taskset, played by a harness of verifiers."""

    name = "verifiers"
    reward_names = None
    config_type = VerifiersConfig
    config: VerifiersConfig
    beginning: "asyncio.Future[Any] | None" = None
    episode: int | None = None
    outcome: JsonObject | None = None

    @property
    def child(self) -> ChildInterpreter:
        """The interpreter that has the package."""
        return child_interpreter(
            self.config.python, self.config.script, self.config.request_seconds
        )

    def probe(self) -> None:
        """The environment can be made, has one seat for the policy, and tasks."""
        for heldout in (False, True) if self.config.heldout else (False,):
            self.child.ask_now("check", settings=self.config.told(heldout))
        if self.config.eval_dataset:
            _page(self._source("heldout"), 0)

    def _source(self, split: Split) -> "Source":
        config = self.config
        own = split == "heldout" and bool(config.heldout or config.eval_dataset)
        told = config.told(own)
        return Source(config.python, config.script, config.request_seconds, told, own)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: a finite taskset is shuffled anew with every pass; an endless one goes on. Raises
        ValueError where the split has no task."""
        source = self._source(split)
        apart = bool(self.config.heldout or self.config.eval_dataset)
        if _endless(source):
            for row in _rows(source):
                if apart or self._split(row) == split:
                    yield self._task(row, source.heldout)
        rows = [row for row in _all_rows(source) if apart or self._split(row) == split]
        if not rows:
            raise ValueError(
                f"environment {self.name!r}: no task is in the split {split}; give heldout"
            )
        rng = random.Random(f"{split}/{seed}")
        while True:
            for row in rng.sample(rows, len(rows)):
                yield self._task(row, source.heldout)

    def _task(self, row: JsonObject, heldout: bool) -> Task:
        return Task(self.name, {"row": row, "heldout": heldout})

    def _split(self, row: JsonObject) -> Split:
        """By the content without its place, so that equal problems are in one split."""
        data = {key: value for key, value in row.items() if key not in ("idx", "example_id")}
        return Task(self.name, data).split

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.notes |= await self.child.ask("versions")
        self.served_model = self.config.model
        row = task.data["row"]
        system = row.get("system_prompt")
        said = [Message("system", system)] if isinstance(system, str) else []
        return [*said, Message("user", _text(row.get("prompt")))]

    async def play(self, access: ModelAccess) -> str:
        limits = {"max_turns": access.max_turns, "max_total_tokens": access.max_tokens}
        known = {name: most for name, most in limits.items() if most}
        begin = self.child.ask(
            "begin",
            settings=self.config.told(self.task["heldout"], known),
            data=self.task["row"],
            url=access.url,
            key=access.key,
            model=access.model,
        )
        # Told of its number even where the episode is given up meanwhile: `close` ends it by that.
        begun = self.beginning = asyncio.ensure_future(begin)
        begun.add_done_callback(self._begun)
        await asyncio.shield(begun)
        assert self.episode is not None, "it has begun"
        outcome = await ended(self.child, self.episode)
        self.episode = None
        if outcome.get("lost"):
            raise HostFault(f"{self.child.where}, was started anew and has lost the episode")
        if raised := outcome.get("raised"):
            raise ForeignError(raised)
        if not outcome["ok"]:
            told = "; ".join(outcome["errors"]) or f"it stopped with {outcome['stop']!r}"
            kind = HostFault if outcome["infrastructure"] else RuntimeError
            raise kind(f"verifiers could not score the episode: {told[:1000]}")
        self.outcome = outcome
        return json.dumps({key: outcome[key] for key in ("stop", "rewards", "metrics")})

    def _begun(self, begun: "asyncio.Future[Any]") -> None:
        if not begun.cancelled() and begun.exception() is None:
            self.episode = begun.result()

    async def score(self) -> dict[str, float]:
        """verifiers' rewards by name, each times its weight there; none where a harness broke off at a limit
        of the episode, and nothing was scored."""
        return {} if self.outcome is None else self.outcome["rewards"]

    async def close(self) -> None:
        if self.beginning is not None:  # it may have been given up before the child had begun it
            await asyncio.wait([self.beginning])
        # An episode whose child has died is over; a new child is not started for it.
        if self.episode is not None and self.child.alive:
            await self.child.ask("drop", number=self.episode)


def _text(prompt: Any) -> str:
    """A prompt as one text: it is a text, or messages whose content is a text or parts."""
    if isinstance(prompt, str):
        return prompt
    texts: list[str] = []
    for message in cast(list[JsonObject], prompt or []):
        content = message.get("content")
        parts: list[JsonObject] = [{"text": content}] if isinstance(content, str) else content or []
        texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "\n\n".join(texts)


@dataclass(frozen=True)
class Source:
    """Where tasks come from: an interpreter's script, and what it makes an environment of."""

    python: str
    script: str
    seconds: float
    settings: str
    heldout: bool


def _page(source: Source, start: int) -> JsonObject:
    child = child_interpreter(source.python, source.script, source.seconds)
    asked = {"settings": source.settings, "heldout": source.heldout}
    return child.ask_now("tasks", **asked, start=start, count=PAGE)


@lru_cache(64)
def _endless(source: Source) -> bool:
    return _page(source, 0)["endless"]


def _rows(source: Source) -> Iterator[JsonObject]:
    start = 0
    while rows := _page(source, start)["tasks"]:
        yield from rows
        start += len(rows)


@lru_cache(8)
def _all_rows(source: Source) -> tuple[JsonObject, ...]:
    return tuple(_rows(source))
