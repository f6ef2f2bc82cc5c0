"""Accepts a task, or says why not: every reason is one of `REASONS`.

A task is accepted where its chain works and satisfies the rubric, no step of it can be left out, other orders
that respect what depends on what satisfy as well, doing nothing does not, no row is told by words that fit
another one, each argument of an act shows in the end, and ten mutations of the chain are rejected. A planner
that has not seen the chain looks for a solution too; where it finds none, the task is accepted as hard."""

import random
from collections.abc import Sequence
from dataclasses import replace

from envs.generated.books import Fact, Refused
from envs.generated.chain import (
    Broken,
    Step,
    play,
    play_on,
    play_step,
    reordered,
    resolved,
    sources,
    writes,
)
from envs.generated.domain import Domain
from envs.generated.mutations import mutated, passes, with_other
from envs.generated.planner import Planner, Wanted, difference_now, wanted_of
from envs.generated.task_data import GeneratedTask
from envs.generated.world import World

REASONS = (
    "no chain", "gold fails", "nothing to do", "ambiguous words", "argument unseen",
    "step not needed", "order matters", "mutation passes",
)  # fmt: skip
ORDERS, MUTATIONS = 3, 10


class Rejected(Exception):
    """A task that is not accepted: its reason, of REASONS, and what showed it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def verified(domain: Domain, task: GeneratedTask, rng: random.Random) -> GeneratedTask:
    """The task, marked as hard where the planner does not solve it. Raises Rejected."""
    if not task.rubric.changes:
        raise Rejected("nothing to do")
    _words_are_clear(domain, task)
    world = task.world(domain)
    try:
        traces, wanted = _gold(world, task)
        _no_step_too_many(world, task)
        _orders(world, task, traces, rng)
        _every_argument_counts(world, task, rng)
        _mutations(world, task, rng)
        planner = Planner(world, wanted)
        return replace(task, hard=not planner.solve())
    finally:
        world.close()


def said(task: GeneratedTask, gave: Sequence[dict[str, object]]) -> str:
    """The final answer after a chain that gave this."""
    return str(gave[task.answer[0]].get(task.answer[1], "")) if task.answer else "done"


def satisfies(world: World, task: GeneratedTask, steps: Sequence[Step], absent: int = -1) -> bool:
    """True if a chain can be carried out and satisfies the rubric; the world is as before then."""
    books = world.mark()
    try:
        gave = play(world, steps, absent)
        return task.rubric.holds(world, said(task, gave))
    except (Broken, Refused):
        return False
    finally:
        world.rewind(books)


def _gold(world: World, task: GeneratedTask) -> tuple[list[tuple[set[Fact], set[Fact]]], Wanted]:
    """Find what each step reads and writes, and the state that the chain leads to. Raises Rejected."""
    books = world.mark()
    traces: list[tuple[set[Fact], set[Fact]]] = []
    gave: list[dict[str, object]] = []
    try:
        for step in task.steps:
            before = difference_now(world)
            gave.append(play_step(world, step, gave))
            traces.append((world.reads, world.writes))
            _seen(world, step, gave, before)
        wanted = wanted_of(world)
        if not task.rubric.holds(world, said(task, gave)):
            raise Rejected("gold fails", "the rubric does not hold")
    except (Broken, Refused) as error:
        raise Rejected("gold fails", str(error)) from None
    finally:
        world.rewind(books)
    return traces, wanted


def _seen(
    world: World, step: Step, gave: Sequence[dict[str, object]], before: tuple[str, ...]
) -> None:
    """Each row that an act is called with has to occur in what it changes, or another would do as well.
    Raises Rejected."""
    tool = world.domain.tools[step.tool]
    if tool.kind != "act":
        return
    changed = " ".join(set(before) ^ set(difference_now(world)))
    for name, spec in tool.args.items():
        if spec.kind != "ref" or spec.many:
            continue
        id = str(resolved(step.args[name], gave))
        new = world.books.before.get((spec.entity, id), {}) is None  # told by what it holds
        if not new and id not in changed:
            raise Rejected("argument unseen", f"{step.tool}, {name}")


def _no_step_too_many(world: World, task: GeneratedTask) -> None:
    """No step can be left out, nor an act and all that is refused without it. Raises Rejected."""
    for i, step in enumerate(task.steps):
        if satisfies(world, task, task.steps, absent=i):
            raise Rejected("step not needed", step.tool)
        if world.domain.tools[step.tool].kind != "act":
            continue
        books = world.mark()
        play_on(world, [*task.steps[:i], replace(step, tool="left out"), *task.steps[i + 1 :]])
        same = task.rubric.holds(world, task.rubric.answer or "done")
        world.rewind(books)
        if same:
            raise Rejected("step not needed", step.tool)


def _words_are_clear(domain: Domain, task: GeneratedTask) -> None:
    """No two rows may be told by the same words. Raises Rejected."""
    for name, entity in domain.entities.items():
        told = [tuple(row[field] for field in entity.by) for row in task.rows[name]]
        if len(set(told)) < len(told):
            raise Rejected("ambiguous words", name)


def _orders(
    world: World,
    task: GeneratedTask,
    traces: Sequence[tuple[set[Fact], set[Fact]]],
    rng: random.Random,
) -> None:
    before = dependencies(task.steps, traces)
    for _ in range(ORDERS):
        order = _random_order(before, rng)
        answer = (order.index(task.answer[0]), task.answer[1]) if task.answer else ()
        other = replace(task, answer=answer)
        if not satisfies(world, other, reordered(task.steps, order)):
            raise Rejected("order matters", str(order))


def dependencies(
    steps: Sequence[Step], traces: Sequence[tuple[set[Fact], set[Fact]]]
) -> list[set[int]]:
    """For each step, those that have to come before it: its sources, and conflicts over a fact."""
    before = [set(sources(step)) for step in steps]
    for j, (reads, wrote) in enumerate(traces):
        for i in range(j):
            first_reads, first_writes = traces[i]
            if _meet(first_writes, reads | wrote) or _meet(first_reads, wrote):
                before[j].add(i)
    return before


def _meet(writes: set[Fact], others: set[Fact]) -> bool:
    """True if a fact that is written is among the others: a row, a field, or all rows of an entity."""
    if writes & others:
        return True
    wide = {(entity, name) for entity, id, name in others if not id}
    narrow = {(entity, name) for entity, id, name in writes if not id}
    return any((e, n) in wide or (e, "") in wide for e, _, n in writes) or any(
        (e, n) in narrow for e, _, n in others
    )


def _random_order(before: Sequence[set[int]], rng: random.Random) -> list[int]:
    order: list[int] = []
    left = set(range(len(before)))
    while left:
        ready = sorted(i for i in left if before[i] <= set(order))
        order.append(rng.choice(ready))
        left.discard(order[-1])
    return order


def _every_argument_counts(world: World, task: GeneratedTask, rng: random.Random) -> None:
    """No act may be called with another value, as it may where a later act sets the same field again. Raises
    Rejected."""
    for at in writes(world.domain, task.steps):
        tool = world.domain.tools[task.steps[at].tool]
        for name in (name for name, spec in tool.args.items() if not spec.many):
            other = with_other(world, task, at, name, rng)
            if other is not None and passes(world, task, other):
                raise Rejected("argument unseen", f"{tool.name}, {name}")


def _mutations(world: World, task: GeneratedTask, rng: random.Random) -> None:
    """Raises Rejected where one of ten mutations satisfies the rubric."""
    for kind, accepted in mutated(world, task, rng, MUTATIONS):
        if accepted:
            raise Rejected("mutation passes", kind)
