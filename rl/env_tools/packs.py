"""`dorado env generate` and `dorado env packs`: makes packs of verified tasks in processes, and lists them.

In: domains, how many tasks, a seed. Out: a folder that `[env.config] pack` names (`envs.generated.pack`), the
same for the same seed, however many processes make it. Everything is written into a folder beside it, which
takes the final name when it is complete; one that a call which has died has left is removed by the next."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import psutil
from pydantic import ValidationError

from envs.generated.domain import Domain
from envs.generated.domain_file import DomainMistake, builtin_names, read_domain
from envs.generated.environment import domains_called
from envs.generated.generator import NoTask, Tally, make_task
from envs.generated.pack import FORMAT, Pack, PackMistake, hash_of, write_tasks
from envs.generated.task_data import Difficulty, GeneratedTask
from envs.generated.tool_graph import structure
from envs.message import JsonObject
from rl.config_error import ConfigError
from rl.env_tools.domain_writer import NotWritten, keep_rejected, served_writer, written_domain

CHUNK = 25
MOST_DOMAINS = 1000
# The dimensions of a task whose level is not given: a task draws one of these for each.
LEVELS: dict[str, tuple[float, ...]] = {
    "chain": (1, 2, 3, 3, 4, 5, 6),
    "branching": (0.2, 0.4, 0.8),
    "distractors": (0.5, 1.0, 2.0),
    "lookups": (0.6, 0.9, 1.0),
    "hidden": (0, 0, 1, 2),
    "noise": (0, 0, 1, 2),
    "question": (0.4,),
}


@dataclass(frozen=True)
class Order:
    """A part of a pack, for one process: so many tasks of a domain, from a number on."""

    source: dict[str, object]
    seed: int
    first: int
    count: int
    fixed: dict[str, float]


@dataclass
class Made:
    """A part of a pack: its tasks, and how it went."""

    domain: str
    tasks: list[JsonObject] = field(default_factory=list[JsonObject])
    tally: Tally = field(default_factory=Tally)


def generate(
    out: Path,
    domains: Sequence[Domain],
    *,
    tasks: int,
    seed: int,
    fixed: dict[str, float],
    processes: int,
) -> JsonObject:
    """Write a pack; returns its verification sheet. Raises ConfigError."""
    try:
        with new_pack(out) as partial:
            return _write(partial, domains, tasks, seed, fixed, processes)
    except BrokenProcessPool:
        raise ConfigError(
            f"{out}: a process that made tasks was killed (out of memory?): ask for fewer --processes"
        ) from None
    except NoTask as error:
        raise ConfigError(str(error)) from None


@contextmanager
def new_pack(out: Path) -> Generator[Path]:
    """A folder to write a pack into, which gets its name when all is done. Raises ConfigError where there is
    one of the name, and where it cannot be written."""
    partial = out.parent / f"{_partial(out)}{os.getpid()}"
    try:
        if os.path.lexists(out):
            raise ConfigError(f"{out} exists already: give another name, or remove it")
        _remove_left(out)
        partial.mkdir(parents=True)
        yield partial
        if os.path.lexists(out):
            raise ConfigError(f"{out} was made by another call meanwhile: give another name")
        os.rename(partial, out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise ConfigError(f"{out} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(out: Path) -> str:
    """How a folder that is being written on this machine is called, but for the process's number."""
    return f".{out.name}.partial-{socket.gethostname()}-"


def _remove_left(out: Path) -> None:
    """Remove what calls on this machine that have died have left. Raises OSError."""
    beginning = _partial(out)
    for left in out.parent.iterdir() if out.parent.is_dir() else ():
        pid = left.name.removeprefix(beginning)
        if left.name.startswith(beginning) and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def chosen_domains(which: str) -> list[Domain]:
    """`20`: so many, those that come with Dorado, then sampled ones; else names with commas between
    (`envs.generated.environment.domains_called`). Raises ConfigError."""
    names = which.split(",")
    if re.fullmatch(r"[0-9]{1,9}", which):
        own, count = builtin_names(), int(which)
        if not 1 <= count <= MOST_DOMAINS:
            raise ConfigError(f"--domains {which}: it has to be 1 to {MOST_DOMAINS}, or names")
        sampled = [f"sampled:{i}" for i in range(count - len(own))]
        names = [*own, *sampled][:count]
    try:
        return list(domains_called([name.strip() for name in names]).values())
    except DomainMistake as error:
        raise ConfigError("--domains: " + "\n".join(error.mistakes)) from None


def written_domains(
    out: Path, known: Sequence[Domain], server: str, model: str, about: Sequence[str]
) -> list[Domain]:
    """Domains that a served model writes; what is not accepted lies in `OUT-rejected`. Raises ConfigError."""
    if bool(server) != bool(about):
        raise ConfigError("--with SERVER and --about TEXT go together: who writes, and what about")
    found: list[Domain] = []
    rejected = out.parent / f"{out.name}-rejected"
    for one in about:
        try:
            domain, tried = written_domain(served_writer(server, model), one, [*known, *found])
        except NotWritten as error:
            keep_rejected(rejected, one, error.attempts)
            raise ConfigError(f"--about {one!r}: {error}; all are in {rejected}") from None
        found.append(domain)
        if len(tried) > 1:
            keep_rejected(rejected, one, tried)
    return found


def fixed_levels(text: str) -> dict[str, float]:
    """`{"chain": 2}` as the levels that all tasks have. Raises ConfigError."""
    try:
        read: object = json.loads(text) if text else {}
        if not isinstance(read, dict):
            raise ConfigError(f"--task is no JSON object: {text[:80]}")
        level = Difficulty.model_validate(read)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "--task"
        raise ConfigError(f"--task: {where}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--task is no JSON object: {error}") from None
    return level.model_dump(exclude_unset=True)


def packs_in(folder: Path) -> list[JsonObject]:
    """The packs in a folder: name, digest, counts."""
    found: list[JsonObject] = []
    for path in sorted(folder.glob("*/pack.json")):
        try:
            pack = Pack(path.parent)
        except PackMistake as error:
            found.append({"name": path.parent.name, "mistake": str(error)})
            continue
        found.append({"name": path.parent.name, **pack.sheet})
    return found


def _write(
    folder: Path,
    domains: Sequence[Domain],
    tasks: int,
    seed: int,
    fixed: dict[str, float],
    processes: int,
) -> JsonObject:
    (folder / "domains").mkdir()
    sources = [domain.source for domain in sorted(domains, key=lambda one: f"{one.name}.json")]
    for domain in domains:
        text = json.dumps(domain.source, indent=1)
        (folder / "domains" / f"{domain.name}.json").write_text(text, encoding="utf-8")
    begun = time.monotonic()
    by_domain = {domain.name: Made(domain.name) for domain in domains}
    counts = {domain.name: _Counts() for domain in domains}
    orders = _orders(domains, tasks, seed, fixed)

    def each() -> Iterator[JsonObject]:
        for made in _made(orders, processes):
            total = by_domain[made.domain].tally
            total.reasons.update(made.tally.reasons)
            total.used.update(made.tally.used)
            for data in made.tasks:
                counts[made.domain].see(data)
                yield data

    count, digest = write_tasks(folder / "tasks.sqlite", each())
    sheet = {
        "seconds": round(time.monotonic() - begun, 1),
        "processes": processes,
        "tasks": count,
        "tries": dict(sum((one.tally.reasons for one in by_domain.values()), Counter[str]())),
        "domains": {
            domain.name: {
                "tools": len(domain.tools),
                "structure": structure(domain),
                "tries": dict(by_domain[domain.name].tally.reasons),
                "acts": dict(by_domain[domain.name].tally.used),
                "acts_never_asked": sorted(
                    {tool.name for tool in domain.acts} - set(by_domain[domain.name].tally.used)
                ),
                **counts[domain.name].as_json(),
            }
            for domain in domains
        },
    }
    head = {
        "format": FORMAT, "digest": digest, "domains_digest": hash_of(sources), "tasks": count,
        "seed": seed, "fixed": fixed, "domains": [domain.name for domain in domains],
    }  # fmt: skip
    for name, content in (("pack.json", head), ("verification.json", sheet)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(head, sheet), encoding="utf-8")
    return sheet


class _Counts:
    """Counts over the tasks of one domain."""

    def __init__(self) -> None:
        self.tasks, self.hard = 0, 0
        self.steps: Counter[int] = Counter()
        self.acts: Counter[int] = Counter()
        self.shapes: set[str] = set()

    def see(self, data: JsonObject) -> None:
        """Count one task."""
        self.tasks += 1
        self.hard += data["hard"]
        self.steps[int(data["measures"]["steps"])] += 1
        self.acts[int(data["measures"]["acts"])] += 1
        self.shapes.add(data["structure"])

    def as_json(self) -> JsonObject:
        """Plain data."""
        return {
            "tasks": self.tasks,
            "hard": self.hard,
            "steps": dict(sorted(self.steps.items())),
            "asked": dict(sorted(self.acts.items())),
            "shapes": len(self.shapes),
        }


def _orders(
    domains: Sequence[Domain], tasks: int, seed: int, fixed: dict[str, float]
) -> list[Order]:
    """Parts of the same size, domains in turn."""
    orders: list[list[Order]] = []
    for i, domain in enumerate(domains):
        share = tasks // len(domains) + (i < tasks % len(domains))
        orders.append(
            [
                Order(domain.source, seed, first, min(CHUNK, share - first), fixed)
                for first in range(0, share, CHUNK)
            ]
        )
    longest = max((len(one) for one in orders), default=0)
    return [one[i] for i in range(longest) for one in orders if i < len(one)]


def _made(orders: Sequence[Order], processes: int) -> Iterator[Made]:
    processes = min(processes, len(orders))
    if processes == 1:
        yield from map(make_part, orders)
        return
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with ProcessPoolExecutor(processes, context, _end_with, (reader,)) as pool, writer, reader:
        parts = deque(pool.submit(make_part, order) for order in orders)
        while parts:
            yield parts.popleft().result()


def _end_with(reader: Connection) -> None:
    """End this process at once when the writer at the other end is closed, or its holder has died. An
    interrupt at the keyboard, which all processes get, is left to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        wait([reader])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def make_part(order: Order) -> Made:
    """Carry out an order. Raises NoTask."""
    domain = read_domain(order.source)
    made = Made(domain.name)
    for number in range(order.first, order.first + order.count):
        rng = random.Random(f"{order.seed}/{domain.name}/{number}")
        drawn = {name: rng.choice(levels) for name, levels in LEVELS.items()}
        level = Difficulty.model_validate({**drawn, **order.fixed})
        task = _longest(domain, f"{order.seed}/{number}", level, made.tally, order)
        made.tasks.append(task.as_json())
    return made


def _longest(
    domain: Domain, seed: str, level: Difficulty, tally: Tally, order: Order
) -> GeneratedTask:
    """A task of this level; where a small domain makes none, of a shorter chain, unless the length was asked
    for. Raises NoTask."""
    while True:
        try:
            return make_task(domain, seed, level, tally)
        except NoTask:
            if level.chain == 1 or "chain" in order.fixed:
                raise
            level = level.model_copy(update={"chain": level.chain - 1})


def _card(head: JsonObject, sheet: JsonObject) -> str:
    """The data card."""
    tries = sheet["tries"]
    total = sum(tries.values())
    rows = [
        f"| {name} | {one['tools']} | {one['tasks']} | {one['hard']} | {one['shapes']} | "
        f"{len(one['acts_never_asked'])} |"
        for name, one in sheet["domains"].items()
    ]
    reasons = "\n".join(f"- {reason}: {n}" for reason, n in sorted(tries.items()))
    return "\n".join(
        (
            f"# Pack {head['digest']}",
            "",
            f"{head['tasks']} tasks over {len(head['domains'])} domains, made by `dorado env generate` from "
            f"seed {head['seed']}; format {head['format']}. Settings that all tasks share: "
            f"{json.dumps(head['fixed'])}; the others are drawn for each task.",
            "",
            "Made by a program from domain files, without a model and without data of people: names come out "
            "of lists. For training and evaluating agents that call tools. Texts are English, by "
            "templates: they vary less than people do. A policy that does well here knows these tools, "
            "and not a real clinic's.",
            "",
            "| domain | tools | tasks | hard | shapes of chains | acts never asked for |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Of {total} tries {tries.get('accepted', 0)} were accepted. By outcome:",
            "",
            reasons,
            "",
            "Hard: the planner, which sees the schema and the wanted state but not the chain, found no "
            "solution.",
            "",
        )
    )
