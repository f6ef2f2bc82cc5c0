"""What a check looks for in an environment, in the process that `rl.env_tools.check.run` starts for it.

The tasks are drawn and played twice, by the expert and by a policy that says nothing; then with odd
arguments, closed at odd times, and cut off at its deadlines.
"""

import asyncio
import itertools
import json
import os
import pickle
import sys
import traceback
from collections.abc import Awaitable
from typing import Any, NoReturn

from envs.env import Task
from envs.message import ToolCall
from envs.registry import BadSettings, UnknownEnv
from envs.session import Deadlines, EnvFault, EnvSession
from envs.tool import tools_of
from rl.env_tools.check.clock import Clock
from rl.env_tools.check.probe import (
    AHEAD_SECONDS,
    Broken,
    Moves,
    Probe,
    Spec,
    called,
    send,
    shown,
    told,
)
from rl.env_tools.check.residue import adopt_orphans, end_children, held, left_since
from rl.env_tools.check.sheet import CheckName, Finding
from rl.env_tools.check.transcript import parting
from rl.env_tools.check.watchdog import Block, Stuck, Watch

Tasks = dict[str, list[Task]]
Episodes = dict[str, Any]
# Tasks of each split that are drawn, and that are played.
DRAWN, PLAYED = 200, {"train": 5, "heldout": 3}
CONFIRMATIONS = 2
# An act may go on for so long after its deadline, so that the session's own sentence comes first.
GRACE_SECONDS = 2.0
# An act that is cut off may take so long to let go; then a run gives up its host (`rl.actors.env_host`).
LET_GO_SECONDS = 10.0
# A policy writes anything where a tool takes text.
ODD_VALUES = ("", "x", "-1", "é漢🙂")


async def look(probe: Probe) -> None:
    """All looks of the probe's role. Raises Broken where the rest cannot be looked at."""
    alone = probe.spec.role == "plays"
    if alone:
        _look_at_tools(probe)
    drawn = _draw(probe)
    tasks = [task for split, count in PLAYED.items() for task in drawn[split][:count]]
    if alone:
        _look_at_tasks(probe, drawn)
        _look_at_pickles(probe, drawn["train"][0])
        episodes = await _look_at_two_rounds(probe, tasks)
        await _look_at_rewards(probe, episodes, tasks)
        await _look_at_odd_arguments(probe, tasks[0])
        await _look_at_close(probe, tasks[0])
        await _look_at_cuts(probe, tasks[:2])
    else:
        episodes = await _play(probe, tasks)
    transcript = {"tasks": _ids(drawn), "episodes": episodes}
    send(probe.spec.report, {"transcript": transcript})


def _ids(drawn: Tasks) -> dict[str, list[str]]:
    return {split: [task.id for task in tasks] for split, tasks in drawn.items()}


def _look_at_tools(probe: Probe) -> None:
    try:
        tools = tools_of(probe.env_class)
    except Exception as error:  # a schema is made of the author's type hints
        probe.fail("tools", f"{error}, such as str, int or list[str]: the policy is told of it")
        raise Broken from None
    for tool in tools.values():
        if not tool.schema.description:
            probe.fail(
                "tools", f"tool {tool.name!r} needs a docstring: the policy reads its first line"
            )
        for argument, schema in tool.schema.parameters["properties"].items():
            if not set(schema) - {"default", "title", "description"}:
                probe.fail(
                    "tools",
                    f"tool {tool.name!r}: argument {argument!r} needs a type that says something, such as "
                    "str, int or list[str]",
                )
    probe.settle("tools")


def _draw(probe: Probe) -> Tasks:
    """The first tasks of both splits. Raises Broken."""
    pattern = probe.make()
    drawn: Tasks = {}
    for split in ("train", "heldout"):
        label = f"tasks({split!r}, seed=0)"
        probe.doing(label)
        try:
            with probe.watch.during(label, measured=False):
                drawn[split] = list(itertools.islice(pattern.tasks(split, 0), DRAWN))
                for task in drawn[split]:
                    if json.loads(json.dumps(task.data)) != task.data:
                        raise TypeError(
                            f"{shown(task)} is not plain JSON: write lists for tuples and text for keys"
                        )
        except Exception as error:
            probe.fail("tasks", f"{label}: {told(error)}", traceback.format_exc())
            raise Broken from None
        if not drawn[split]:
            probe.fail("tasks", f"{label} gave no task")
            raise Broken
    return drawn


def _look_at_tasks(probe: Probe, drawn: Tasks) -> None:
    name, train = probe.env_class.name, drawn["train"]
    if len(train) < DRAWN:
        probe.fail(
            "tasks",
            f"tasks('train') ended after {len(train)}: training never stops asking, so let it begin "
            "again, say in another order",
        )
    for task in itertools.chain(*drawn.values()):
        if task.env != name:
            probe.fail("tasks", f"a task is of {task.env!r}: make it with Task(self.name, data)")
            break
    probe.settle("tasks")
    known = {task.id for task in train}
    shared = [task for task in drawn["heldout"] if task.id in known]
    if shared:
        probe.fail(
            "splits",
            f"{len(shared)} of the first {len(drawn['heldout'])} held-out tasks are among the first "
            f"{len(train)} to train on, such as {shown(shared[0])}: let tasks() yield a task only where "
            "task.split == split",
        )
    probe.settle("splits")
    parted = parting(
        {"tasks": _ids(drawn), "episodes": {}}, {"tasks": _ids(_draw(probe)), "episodes": {}}
    )
    if parted is not None:
        probe.fail(
            "determinism",
            f"{parted}: take all chance from the rng that sample() is given, or from the seed",
        )


def _look_at_pickles(probe: Probe, task: Task) -> None:
    for what, value in (("a task", task), ("the environment", probe.make())):
        try:
            pickle.loads(pickle.dumps(value))
        except Exception as error:
            probe.fail(
                "pickle",
                f"{what} cannot be pickled before reset(): {told(error)}; a task is plain JSON, and "
                "__init__ keeps settings and opens nothing",
            )


async def _play(probe: Probe, tasks: list[Task]) -> Episodes:
    """Every task by the expert and by a policy that says nothing."""
    moves: list[Moves] = ["expert", "empty"] if probe.has_expert else ["empty"]
    return {
        f"{index}/{how}": (await probe.episode(task, how)).as_json()
        for index, task in enumerate(tasks)
        for how in moves
    }


async def _look_at_two_rounds(probe: Probe, tasks: list[Task]) -> Episodes:
    """The second round has to say what the first said, and leave nothing that it did not leave."""
    episodes = await _play(probe, tasks)
    blocks, before = list(probe.watch.blocks), held(probe.folder)
    again = await _play(probe, tasks)
    left = await left_since(before, probe.folder)
    if left:
        probe.fail(
            "leaks",
            f"{len(again)} episodes left {left}: end or remove in close() what reset() or a tool made",
        )
    parted = parting({"tasks": {}, "episodes": episodes}, {"tasks": {}, "episodes": again})
    if parted is not None:
        probe.fail(
            "determinism",
            f"played twice, a task differs: {parted}; take all that varies from task.data or from "
            "random.Random(task.id)",
        )
    await _confirm_blocks(probe, blocks, tasks)
    return episodes


async def _confirm_blocks(probe: Probe, first: list[Block], tasks: list[Task]) -> None:
    """An act that blocks in every round blocks; one that did so once met a cold cache."""
    later = probe.watch.blocks[len(first) :]
    suspects = {block.act for block in first} & {block.act for block in later}
    for _ in range(CONFIRMATIONS if suspects else 0):
        probe.watch.blocks.clear()
        await _play(probe, tasks)
        later = list(probe.watch.blocks)
        suspects &= {block.act for block in later}
    for act in sorted(suspects):
        worst = max((one for one in later if one.act == act), key=lambda one: one.seconds)
        probe.fail("blocking", _blocking(act, f"for {worst.seconds:.2f} s"), worst.stack)
    probe.settle("blocking")


def _blocking(act: str, how_long: str) -> str:
    return (
        f"{act} blocks the event loop {how_long}, and every other episode of its host with it: await what "
        "waits, write a tool that blocks as a plain def, and call the rest through asyncio.to_thread"
    )


async def _look_at_rewards(probe: Probe, episodes: Episodes, tasks: list[Task]) -> None:
    for key, episode in episodes.items():
        rewards, task = episode["rewards"], tasks[int(key.partition("/")[0])]
        if key.endswith("/expert") and rewards and not _full(rewards):
            probe.fail(
                "expert",
                f"the expert scores {rewards} on task {shown(task)}: mend expert() or score(); full is "
                "`solved` of 1, or 1 in total where there is no `solved`",
            )
        if key.endswith("/empty") and _full(rewards):
            probe.fail(
                "idle",
                f"an answer without a word scores {rewards} on task {shown(task)}: let score() ask for "
                "what the task wants",
            )
    for task in tasks[:2]:
        rewards = (await probe.episode(task, "silent")).rewards
        if _full(rewards):
            probe.fail("idle", f"an episode without any answer scores {rewards}: mend score()")
    if not any(episode["rewards"] for episode in episodes.values()):
        for check in ("expert", "idle", "range"):
            probe.skip(check, "score() gives no rewards of its own: a judge has to")
    elif not probe.has_expert:
        probe.skip("expert", "it offers no expert, so no tool was used the way it is meant")
    probe.settle("expert", "idle", "range", "pickle")


def _full(rewards: dict[str, float]) -> bool:
    """As an evaluation counts it."""
    return rewards.get("solved", sum(rewards.values())) >= 1


async def _look_at_odd_arguments(probe: Probe, task: Task) -> None:
    for value in ODD_VALUES:
        session = EnvSession(probe.make(), probe.deadlines)
        try:
            await probe.act("reset()", session.open(task))
            for name, tool in session.tools.items():
                odd = dict.fromkeys(tool.schema.parameters["properties"], value)
                await probe.act(f"tool {name!r}", session.step("", (ToolCall(name, odd),)))
        except EnvFault as fault:
            probe.fault(fault, task)
            raise Broken from None
        finally:
            await probe.close(session, "close()")
    probe.settle("acts")


async def _look_at_close(probe: Probe, task: Task) -> None:
    await probe.close(EnvSession(probe.make(), probe.deadlines), "close() without reset()")
    session = EnvSession(probe.make(), probe.deadlines)
    await probe.act("reset()", session.open(task))
    await probe.close(session, "close()")
    await probe.close(session, "a second close()")


async def _look_at_cuts(probe: Probe, tasks: list[Task]) -> None:
    """An act that its deadline cuts off has to end, and what it took has to be let go."""
    before = held(probe.folder)
    for first_time in (True, False):
        if not first_time:
            before = held(probe.folder)
        for task in tasks:
            await _cut_off(probe, task)
    left = await left_since(before, probe.folder)
    if left:
        probe.fail(
            "leaks",
            f"{len(tasks)} episodes that a deadline cut off left {left}: close() has to end what a "
            "reset() or a tool had begun",
        )
    probe.settle("deadlines", "close", "leaks")


async def _cut_off(probe: Probe, task: Task) -> None:
    at_once = Deadlines(0.0, 0.0, 0.0, probe.spec.seconds)
    session = EnvSession(probe.make(), at_once)
    await _suffer(probe, "reset()", session.open(task))
    await probe.close(session, "close() after a reset() that was cut off")
    if not probe.has_expert:
        return
    session = EnvSession(probe.make(), probe.deadlines)
    await probe.act("reset()", session.open(task))
    session.deadlines = at_once
    message = next(session.env.expert(task))
    step = session.step(message.content, message.tool_calls)
    await _suffer(probe, called(message), step)
    await probe.close(session, f"close() after {called(message)} was cut off")


async def _suffer(probe: Probe, label: str, act: Awaitable[object]) -> None:
    """Await what is cut off where it first waits."""
    try:
        await probe.act(label, act, seconds=LET_GO_SECONDS)
    except EnvFault as fault:
        if fault.kind != "timeout":
            probe.fail(
                "deadlines",
                f"cut off at its deadline, {label} raised {told(fault)}: let CancelledError through",
                fault.trace,
            )


def main() -> None:
    """Look at the environment of the `Spec` that is the first argument."""
    spec = Spec(**json.loads(sys.argv[1]))
    os.set_inheritable(spec.report, False)
    adopt_orphans()
    clock = Clock(AHEAD_SECONDS if spec.role == "later" else 0.0)

    def stuck(act: Stuck) -> None:
        send(spec.report, {"finding": _of_stuck(act).__dict__})
        _end(spec)

    watch = Watch(spec.seconds + GRACE_SECONDS, stuck)
    if spec.role == "later":
        clock.install()
    try:
        asyncio.run(look(Probe(spec, clock, watch)))
    except Broken:
        pass
    except (UnknownEnv, BadSettings) as error:
        send(spec.report, {"bad": str(error)})
    _end(spec)


def _end(spec: Spec) -> NoReturn:
    """At once: a thread or an exit handler of the environment's could wait for ever."""
    end_children()
    send(spec.report, {"end": True})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _of_stuck(act: Stuck) -> Finding:
    where = f"{act.act} does not end within {act.seconds:.0f} s"
    check: CheckName = "deadlines"
    if act.act.startswith("tasks("):
        check = "tasks"
        where += ": sample() has to make many different tasks, for one in ten of them is held out"
    elif act.act in ("expert()", "creating it", "importing it"):
        check = "expert" if act.act == "expert()" else "acts"
    elif act.running:
        check, where = "blocking", _blocking(act.act, f"for more than {act.seconds:.0f} s")
    else:
        where += ", deadline or not: it catches CancelledError; let it through"
    return Finding(check, "fail", where, act.stack)


if __name__ == "__main__":
    main()
