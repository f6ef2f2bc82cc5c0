"""`generated`: worlds out of domain files, with tasks that were verified before anyone plays them.

    user: (1) book the slot of Ada Berg on day 3 for Ben Falk      assistant: find_doctor(name=Ada Berg) tool:
    {"id": "DO219"}      assistant: list_slots(page=1, doctor=DO219) ... book_visit(...)      assistant: done

Tasks come from a pack (`dorado env generate`), one at a time, or are made as they are asked for. The rubric
looks at the whole database: what was asked has to be there, and nothing else may have changed."""

import asyncio
import functools
import hashlib
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import model_validator

from envs.dynamic_tool import DynamicTool
from envs.env import HELDOUT_SHARE, Deadlines, Env, EnvConfig, Expert, Split, Task, say
from envs.generated.books import Refused
from envs.generated.chain import Broken, performed
from envs.generated.domain import Domain
from envs.generated.domain_file import DomainMistake, builtin, builtin_names, load
from envs.generated.generator import make_task
from envs.generated.grammar import sample_domain
from envs.generated.pack import PackMistake, TaskEntry, pack_at
from envs.generated.task_data import Difficulty, GeneratedTask
from envs.generated.tool_schema import offered
from envs.generated.world import World
from envs.message import JsonObject, Message, ToolCall
from envs.tool import ToolError

HELDOUT_DOMAINS = 0.25
MOST_RECENT = 64
MOST_OTHERS = 300
SAMPLED_TOOLS = 30
T = TypeVar("T")


class GeneratedConfig(EnvConfig):
    """pack: a folder of `dorado env generate`; "" to make tasks as they are asked for. domains: names of
    those that come with Dorado, or files (.toml, .json); of a pack the names of its own; () for all. task:
    how hard tasks are that are made. heldout: what the held-out split has never been trained on: the task,
    the shape of its chain, or its domain."""

    pack: str = ""
    domains: tuple[str, ...] = ()
    task: Difficulty = Difficulty()
    heldout: Literal["task", "structure", "domain"] = "task"

    @model_validator(mode="after")
    def _readable(self) -> "GeneratedConfig":
        known = domains_of(self.pack, self.domains)
        if self.heldout == "domain" and len(known) < 2:
            raise ValueError("heldout = 'domain' needs two domains at least, one to train on")
        if self.pack and self.task != Difficulty():
            raise ValueError("task is for tasks that are made: those of a pack are as they are")
        return self


class Generated(Env):
    """Worlds out of domain files: requests that take several dependent calls, judged on the whole
    database."""

    name = "generated"
    reward_names = ("solved",)
    config_type = GeneratedConfig
    config: GeneratedConfig
    # A task that is made, and not read, costs its host some ten milliseconds, and many may begin at once.
    deadlines = Deadlines(reset_seconds=120.0)
    world: World | None = None

    @functools.cached_property
    def domains(self) -> dict[str, Domain]:
        """The domains of the settings, by their names."""
        return domains_of(self.config.pack, self.config.domains)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        rng = random.Random(f"{self.name}/{split}/{seed}")
        return self._packed(split, rng) if self.config.pack else self._made(split, seed, rng)

    def _packed(self, split: Split, rng: random.Random) -> Iterator[Task]:
        """The pack's tasks of a split in a random order, again and again. Raises PackMistake for none."""
        pack = pack_at(self.config.pack)
        entries = pack.entries(self.domains)
        ids = [one.id for one in entries if self._split(one.domain, str(one.id), one) == split]
        if not ids:
            raise PackMistake(
                f"{self.config.pack} has no task of the split {split}: it is too small"
            )
        while True:
            rng.shuffle(ids)
            for id in ids:
                yield Task(self.name, {"pack": pack.digest, "id": id})

    def _made(self, split: Split, seed: int, rng: random.Random) -> Iterator[Task]:
        """Tasks by their seeds alone; what they are is found where they are played. Raises ValueError where
        the shapes of chains are so few that none is of the split."""
        names = sorted(self.domains)
        level = self.config.task.model_dump(exclude_defaults=True)
        others = 0
        for number in itertools.count():
            name, key = rng.choice(names), f"{seed}/{number}"
            made = None
            if self.config.heldout == "structure":
                made = task_made(self.domains[name], key, self.config.task)
            others += 1
            if self._split(name, key, made) == split:
                others = 0
                data = {"domain": name, "seed": key}
                yield Task(self.name, {**data, "task": level} if level else data)
            elif others >= MOST_OTHERS:
                raise ValueError(
                    f"of {others} tasks none has a shape of the split {split}: there are too few shapes; "
                    "ask for longer chains, more domains, or heldout = 'task'"
                )

    def _split(self, domain: str, key: str, made: TaskEntry | GeneratedTask | None) -> Split:
        match self.config.heldout:
            case "task":
                return split_of(f"{domain}/{key}")
            case "structure":
                return split_of(made.structure if made else "")
            case "domain":
                return "heldout" if domain in heldout_domains(list(self.domains)) else "train"

    def task_features(self, task: Task) -> dict[str, Any]:
        """A pack's task is known by its domain and its measures, one that is yet to be made by its domain and
        the settings."""
        if "pack" not in task.data:
            return {"domain": task.data["domain"], "task": task.data.get("task", {})}
        made = self.generated(task)
        return {"domain": made.domain, "hard": made.hard, "measures": made.measures}

    async def reset(self, task: Task) -> list[Message]:
        made = await _in_thread(lambda: self.generated(task))
        self.rubric = made.rubric
        self.world = made.world(self.domains[made.domain])
        return [Message("system", made.system), Message("user", made.request)]

    def generated(self, task: Task) -> GeneratedTask:
        """The whole task that a task's data name. Raises PackMistake, ValueError where it is not known
        here."""
        if "pack" in task.data:
            pack = pack_at(self.config.pack) if self.config.pack else None
            if pack is None or pack.digest != task.data["pack"]:
                raise PackMistake(
                    f"the task is of the pack {task.data['pack']}, and config.pack is "
                    f"{f'{pack.folder}, {pack.digest}' if pack else 'not given'}"
                )
            return pack.task(task.data["id"])
        name = task.data["domain"]
        if name not in self.domains:
            raise ValueError(
                f"a task is of domain {name!r}, and the settings name {', '.join(self.domains)}"
            )
        level = Difficulty(**task.data.get("task", {}))
        return task_made(self.domains[name], task.data["seed"], level)

    async def dynamic_tools(self) -> Sequence[DynamicTool]:
        assert self.world is not None, "reset() builds the world"
        tools = offered(self.domains[self.world.domain.name])
        held = [tool for tool in tools if tool.name in self.world.domain.tools]
        return [tool.calling(functools.partial(self._call, tool.name)) for tool in held]

    async def _call(self, name: str, arguments: JsonObject) -> str:
        assert self.world is not None, "reset() builds the world"
        try:
            return json.dumps(self.world.call(name, arguments), ensure_ascii=False)
        except Refused as error:
            raise ToolError(str(error)) from None

    async def score(self) -> dict[str, float]:
        assert self.world is not None, "reset() builds the world"
        return {"solved": float(self.rubric.holds(self.world, self.answer))}

    async def close(self) -> None:
        if self.world is not None:
            self.world.close()

    def expert(self, task: Task) -> Expert:
        made = self.generated(task)
        tools = self.domains[made.domain].tools
        chain = performed(made.steps)
        gave: list[dict[str, Any]] = []
        try:
            name, arguments = next(chain)
            while True:
                inorder = {key: arguments[key] for key in tools[name].args if key in arguments}
                (text, *_) = yield Message("assistant", tool_calls=(ToolCall(name, inorder),))
                name, arguments = chain.send(_result(text))
        except StopIteration as end:
            gave = end.value
        except Broken:  # a wrong call in the expert's place has left nothing to go on with
            yield say("that did not work")
            return
        yield say(str(gave[made.answer[0]].get(made.answer[1], "")) if made.answer else "done")


def domains_of(pack: str, names: Sequence[str]) -> dict[str, Domain]:
    """The domains that settings name. Raises DomainMistake, PackMistake."""
    if not pack:
        return domains_called(names or builtin_names())
    held = pack_at(pack).domains
    if unknown := [name for name in names if name not in held]:
        raise PackMistake(f"{pack} has no domain {unknown[0]!r}: it has {', '.join(held)}")
    return {name: held[name] for name in names or held}


def domains_called(names: Sequence[str]) -> dict[str, Domain]:
    """The domains of these names, by their own, of which no two are the same. Raises DomainMistake."""
    found = [domain_called(name) for name in names]
    if twice := [name for name, n in Counter(one.name for one in found).items() if n > 1]:
        raise DomainMistake([f"two domains are called {twice[0]}"])
    return {domain.name: domain for domain in found}


@functools.cache
def domain_called(name: str) -> Domain:
    """A domain by its name, out of a file, or sampled: `sampled:SEED:TOOLS`. Raises DomainMistake."""
    if name.startswith("sampled:"):
        _, seed, *tools = name.split(":")
        try:
            return sample_domain(seed, int(tools[0]) if tools else SAMPLED_TOOLS)
        except ValueError as error:
            raise DomainMistake([f"{name}: {error}; write sampled:SEED:TOOLS"]) from None
    if name.endswith((".toml", ".json")):
        return load(Path(name))
    return builtin(name)


def task_made(domain: Domain, seed: str, level: Difficulty) -> GeneratedTask:
    """A task by its seed; the last ones are remembered, for a group plays the same."""
    key = (domain.name, seed, level.model_dump_json())
    with _lock:
        if key in _recent and _recent[key][0] is domain:
            return _recent[key][1]
    made = make_task(domain, seed, level)
    with _lock:
        _recent[key] = (domain, made)
        while len(_recent) > MOST_RECENT:
            del _recent[next(iter(_recent))]
    return made


_recent: dict[tuple[str, str, str], tuple[Domain, GeneratedTask]] = {}
_lock = threading.Lock()


async def _in_thread(make: Callable[[], T]) -> T:
    """Let a thread of its own make something, which takes longer than an event loop should stand."""
    pool = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, make)
    finally:
        pool.shutdown(wait=False)


def split_of(key: str) -> Split:
    """The split that a text falls in, as `Task.split` does it."""
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 0xFFFFFFFF
    return "heldout" if share < HELDOUT_SHARE else "train"


def heldout_domains(names: Sequence[str]) -> set[str]:
    """A quarter of the domains, one at least, chosen by their names; none of a single one."""
    ordered = sorted(names, key=lambda one: hashlib.sha256(one.encode()).hexdigest())
    return set(ordered[: max(1, round(len(names) * HELDOUT_DOMAINS))]) if len(names) > 1 else set()


def _result(text: str) -> dict[str, Any]:
    """A tool's result as data; what cannot be read is nothing."""
    try:
        read: object = json.loads(text)
    except ValueError:
        return {}
    return cast("dict[str, Any]", read) if isinstance(read, dict) else {}
