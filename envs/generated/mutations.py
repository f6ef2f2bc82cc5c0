"""Mutations of a chain: what a careless agent might do, and a rubric has to reject.

In: a task, a world to play on. Out: of each mutation its kind, and whether the rubric was satisfied all the
same. A mutation that does what the chain does (the same call, refused without effect) is none and is drawn
again."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

from envs.generated.books import Refused
from envs.generated.chain import Broken, Step, play_on, play_step, writes
from envs.generated.domain import Field
from envs.generated.population import random_value
from envs.generated.rubric import difference
from envs.generated.task_data import GeneratedTask
from envs.generated.world import World

Mutation = Callable[[World, GeneratedTask, random.Random], list[Step] | None]
_TRIES = 60


def mutated(
    world: World, task: GeneratedTask, rng: random.Random, count: int
) -> Iterator[tuple[str, bool]]:
    """So many mutations: the kind, and whether the rubric accepts what it should not."""
    kinds = list(KINDS)
    rng.shuffle(kinds)
    done = 0
    for attempt in range(_TRIES):
        if done == count:
            return
        kind = kinds[attempt % len(kinds)]
        if kind == "wrong answer":
            if not task.rubric.answer:
                continue
            done += 1
            yield kind, passes(world, task, list(task.steps), answer="none of it")
            continue
        if kind == "no answer":
            done += 1
            yield kind, passes(world, task, list(task.steps), answer="")
            continue
        steps = KINDS[kind](world, task, rng)
        if steps is None:
            continue
        done += 1
        yield kind, passes(world, task, steps)


def passes(
    world: World, task: GeneratedTask, steps: Sequence[Step], answer: str | None = None
) -> bool:
    """True if the rubric is satisfied after these steps; one that is refused is passed over."""
    books = world.mark()
    try:
        gave = play_on(world, steps)
        told = str(gave[task.answer[0]].get(task.answer[1], "")) if task.answer else "done"
        if task.answer and len(steps) != len(task.steps):
            told = task.rubric.answer
        return task.rubric.holds(world, told if answer is None else answer)
    finally:
        world.rewind(books)


def _other_value(world: World, spec: Field, value: object, rng: random.Random) -> object | None:
    if spec.kind == "ref":
        ids = [str(row["id"]) for row in world.rows(spec.entity) if row["id"] != value]
        return rng.choice(ids) if ids else None
    for _ in range(8):
        other = random_value(spec, rng, {}, set()) if spec.kind != "label" else "Nobody Else"
        if other != value:
            return other
    return None


def _wrong_value(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """Another number or word in an act."""
    return _with_other(world, task, rng, entity=False)


def _wrong_entity(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """An act on another row."""
    return _with_other(world, task, rng, entity=True)


def _with_other(
    world: World, task: GeneratedTask, rng: random.Random, *, entity: bool
) -> list[Step] | None:
    at = rng.choice(writes(world.domain, task.steps))
    tool = world.domain.tools[task.steps[at].tool]
    names = [n for n, s in tool.args.items() if (s.kind == "ref") == entity and not s.many]
    return with_other(world, task, at, rng.choice(names), rng) if names else None


def with_other(
    world: World, task: GeneratedTask, at: int, name: str, rng: random.Random
) -> list[Step] | None:
    """Change one argument of one act; None where it has no value, or there is no other one."""
    steps = list(task.steps)
    present = _present(world, task, at, name)
    other = _other_value(world, world.domain.tools[steps[at].tool].args[name], present, rng)
    if present is None or other is None:
        return None
    steps[at] = replace(steps[at], args={**steps[at].args, name: other})
    return steps


def _present(world: World, task: GeneratedTask, at: int, name: str) -> object | None:
    """The value that an argument has when the chain is played."""
    value: Any = task.steps[at].args[name]
    if not isinstance(value, dict):
        return None if isinstance(value, list) else value
    books = world.mark()
    try:
        gave = play_on(world, task.steps[:at])
    finally:
        world.rewind(books)
    source = cast("dict[str, Any]", value)
    return gave[int(source["from"])].get(str(source["get"]))


def _left_out(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """An act is forgotten."""
    steps = list(task.steps)
    at = rng.choice(writes(world.domain, steps))
    steps[at] = replace(steps[at], tool="forgotten")
    return steps


def _half(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """Only the first part is done."""
    acts = writes(world.domain, task.steps)
    end = rng.choice(acts)
    return [
        step if i < end or i not in acts else replace(step, tool="forgotten")
        for i, step in enumerate(task.steps)
    ]


def _unconfirmed(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """An act without the confirmation that a rule asks for."""
    asked = [i for i, step in enumerate(task.steps) if step.tool == "confirm"]
    if not asked:
        return None
    steps = list(task.steps)
    at = rng.choice(asked)
    steps[at] = replace(steps[at], tool="forgotten")
    return steps


def _twice(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """An act is made twice, where the second call changes something too."""
    at = rng.choice(writes(world.domain, task.steps))
    return _if_it_changes(world, [*task.steps, task.steps[at]], len(task.steps))


def _extra(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """An act that nobody asked for, at the end."""
    for _ in range(6):
        tool = rng.choice(world.domain.acts)
        args: dict[str, object] = {}
        for name, spec in tool.args.items():
            value = _other_value(world, spec, None, rng)
            args[name] = [value] if spec.many else value
        if None in args.values():
            continue
        if found := _if_it_changes(world, [*task.steps, Step(tool.name, args)], len(task.steps)):
            return found
    return None


def _too_much_access(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """A permission is requested that no act needs."""
    tool = world.domain.tools.get("request_access")
    held = {step.args["permission"] for step in task.steps if step.tool == "request_access"}
    more = [one for one in tool.args["permission"].choices if one not in held] if tool else []
    return [*task.steps, Step("request_access", {"permission": rng.choice(more)})] if more else None


def _other_tool(world: World, task: GeneratedTask, rng: random.Random) -> list[Step] | None:
    """A tool that takes the same, in the right one's place."""
    steps = list(task.steps)
    at = rng.choice(writes(world.domain, steps))
    right = world.domain.tools[steps[at].tool]
    kinds = {name: (s.kind, s.entity, s.choices) for name, s in right.args.items()}
    same = [
        tool.name
        for tool in world.domain.acts
        if tool.name != right.name
        and {name: (s.kind, s.entity, s.choices) for name, s in tool.args.items()} == kinds
    ]
    if not same:
        return None
    steps[at] = replace(steps[at], tool=rng.choice(same))
    return steps


def _if_it_changes(world: World, steps: list[Step], last: int) -> list[Step] | None:
    """The steps, if the last one changes something and its call is taken."""
    books = world.mark()
    try:
        gave = play_on(world, steps[:last])
        middle = world.mark()
        before = difference(world)
        world.rewind(middle)
        try:
            play_step(world, steps[last], gave)
        except (Broken, Refused):
            return None
        return steps if difference(world) != before else None
    finally:
        world.rewind(books)


KINDS: dict[str, Mutation] = {
    "wrong value": _wrong_value,
    "wrong entity": _wrong_entity,
    "act left out": _left_out,
    "half done": _half,
    "not confirmed": _unconfirmed,
    "done twice": _twice,
    "extra act": _extra,
    "too much access": _too_much_access,
    "other tool": _other_tool,
    "wrong answer": _left_out,
    "no answer": _left_out,
}
