"""The checks of an environment, in the process that `rl.env_tools.check.run` starts for it.

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
from typing import NoReturn

from envs.env import Task
from envs.message import ToolCall
from envs.registry import BadSettings, UnknownEnv
from envs.session import Deadlines, EnvFault, EnvSession
from envs.text import told
from envs.tool import tools_of
from envs.tool_arguments import ToolMistake
from rl.env_tools.check.answers import check_answers, check_slips
from rl.env_tools.check.clock import Clock
from rl.env_tools.check.leaks import adopt_orphans, end_children, held, left_since
from rl.env_tools.check.report import CheckName, Finding
from rl.env_tools.check.runner import (
    AHEAD_SECONDS,
    Broken,
    Runner,
    Spec,
    called,
    full,
    send,
    shown,
)
from rl.env_tools.check.shared_state import SharedState
from rl.env_tools.check.transcript import parting
from rl.env_tools.check.watchdog import Block, Stuck, Watch
from rl.env_tools.check.worlds import (
    Episodes,
    check_levels,
    check_worlds,
    drawn_of,
    hold_to_rewards,
    parting_at_once,
    play_all,
)

Tasks = dict[str, list[Task]]
# Tasks of each split that are drawn, and that are played.
DRAWN, PLAYED = 200, {"train": 5, "heldout": 3}
CONFIRMATIONS = 2
# An act may go on for so long after its deadline, so that the session's own sentence comes first.
GRACE_SECONDS = 2.0
# An act that is cut off may take so long to let go; then a run gives up its host (`rl.actors.env_host`).
LET_GO_SECONDS = 10.0
# A policy writes anything where a tool takes text.
ODD_VALUES = ("", "x", "-1", "é漢🙂")


async def check_all(runner: Runner) -> None:
    """Run all checks of the runner's role. Raises Broken where the rest cannot be checked."""
    alone = runner.spec.role == "plays"
    if alone:
        _check_tools(runner)
        runner.probe()
    drawn = _draw(runner)
    tasks = [task for split, count in PLAYED.items() for task in drawn[split][:count]]
    if alone:
        _check_tasks(runner, drawn)
        _check_pickles(runner, drawn["train"][0])
        episodes = await _check_two_rounds(runner, tasks)
        check_worlds(runner, tasks, episodes)
        await _check_rewards(runner, episodes, tasks)
        await check_answers(runner, tasks[0])
        await check_slips(runner, tasks[:2])
        await check_levels(runner)
        await _check_odd_arguments(runner, tasks[0])
        await _check_close(runner, tasks[0])
        await _check_cuts(runner, tasks[:2])
        if runner.has_agent:
            from rl.env_tools.check.agent_play import check_agent  # a gateway takes long to import

            await check_agent(runner, tasks[0])
    else:
        episodes = await play_all(runner, tasks)
    transcript = {"tasks": _ids(drawn), "episodes": episodes}
    send(runner.spec.findings_fd, {"transcript": transcript})


def _ids(drawn: Tasks) -> dict[str, list[str]]:
    return {split: [task.id for task in tasks] for split, tasks in drawn.items()}


def _check_tools(runner: Runner) -> None:
    try:
        tools = tools_of(runner.env_class)
    except ToolMistake as error:  # of a hint that was not known yet when the class was made
        runner.fail("tools", str(error))
        raise Broken from None
    for tool in tools.values():
        if not tool.schema.description:
            runner.fail(
                "tools", f"tool {tool.name!r} needs a docstring: the policy reads its first line"
            )
        for argument, schema in tool.schema.parameters["properties"].items():
            if not set(schema) - {"default", "title", "description"}:
                runner.fail(
                    "tools",
                    f"tool {tool.name!r}: argument {argument!r} needs a type that says something, such as "
                    "str, int or list[str]",
                )
    runner.settle("tools")


def _draw(runner: Runner) -> Tasks:
    """The first tasks of both splits. Raises Broken."""
    pattern = runner.make()
    drawn: Tasks = {}
    for split in ("train", "heldout"):
        label = f"tasks({split!r}, seed=0)"
        runner.doing(label)
        try:
            with runner.watch.during(label, measured=False):
                drawn[split] = drawn_of(pattern, split, DRAWN)
                for task in drawn[split]:
                    if json.loads(json.dumps(task.data)) != task.data:
                        raise TypeError(
                            f"{shown(task)} is not plain JSON: write lists for tuples and text for keys"
                        )
        except Exception as error:
            runner.fail("tasks", f"{label}: {told(error)}", traceback.format_exc())
            raise Broken from None
        if not drawn[split]:
            runner.fail("tasks", f"{label} gave no task")
            raise Broken
    return drawn


def _check_tasks(runner: Runner, drawn: Tasks) -> None:
    name, train = runner.env_class.name, drawn["train"]
    if len(train) < DRAWN:
        runner.fail(
            "tasks",
            f"tasks('train') ended after {len(train)}: training never stops asking, so let it begin "
            "again, say in another order",
        )
    for task in itertools.chain(*drawn.values()):
        if task.env != name:
            runner.fail("tasks", f"a task is of {task.env!r}: make it with Task(self.name, data)")
            break
    if len({task.id for task in train}) == 1:
        runner.fail(
            "tasks",
            f"tasks('train') gives one task only, {shown(train[0])}: let sample() draw from the rng that it "
            "is given",
        )
    runner.settle("tasks")
    known = {task.id for task in train}
    shared = [task for task in drawn["heldout"] if task.id in known]
    if shared:
        runner.fail(
            "splits",
            f"{len(shared)} of the first {len(drawn['heldout'])} held-out tasks are among the first "
            f"{len(train)} to train on, such as {shown(shared[0])}: let tasks() yield a task only where "
            "task.split == split",
        )
    runner.settle("splits")
    parted = parting(
        {"tasks": _ids(drawn), "episodes": {}}, {"tasks": _ids(_draw(runner)), "episodes": {}}
    )
    if parted is not None:
        runner.fail(
            "determinism",
            f"{parted}: take all chance from the rng that sample() is given, or from the seed",
        )


def _check_pickles(runner: Runner, task: Task) -> None:
    for what, value in (("a task", task), ("the environment", runner.make())):
        try:
            pickle.loads(pickle.dumps(value))
        except Exception as error:
            runner.fail(
                "pickle",
                f"{what} cannot be pickled before reset(): {told(error)}; a task is plain JSON, and "
                "__init__ keeps settings and opens nothing",
            )


async def _check_two_rounds(runner: Runner, tasks: list[Task]) -> Episodes:
    """The second round has to say what the first said, and leave nothing that it did not leave."""
    episodes = await play_all(runner, tasks)
    blocks, before = list(runner.watch.blocks), held(runner.folder)
    shared = SharedState(runner.env_class)
    again = await play_all(runner, tasks, shared)
    left = await left_since(before, runner.folder)
    if left:
        runner.fail(
            "leaks",
            f"{len(again)} episodes left {left}: end or remove in close() what reset() or a tool made",
        )
    await _check_shared(runner, tasks, shared, episodes, again)
    await _confirm_blocks(runner, blocks, tasks)
    return episodes


async def _check_shared(
    runner: Runner, tasks: list[Task], shared: SharedState, episodes: Episodes, again: Episodes
) -> None:
    """A task is the same the second time, and with another one at its side.

    A variable of the module may change, such as one that counts, unless that is what makes a difference.
    """
    if shared.first("class"):
        runner.fail("determinism", shared.first("class"))
    parted = parting({"tasks": {}, "episodes": episodes}, {"tasks": {}, "episodes": again})
    if parted is not None:
        hint = "take all that varies from task.data or from random.Random(task.id)"
        why = shared.first("module") or hint
        runner.fail("determinism", f"played twice, a task differs: {parted}; {why}")
    elif apart := await parting_at_once(runner, tasks, episodes):
        why = shared.first("module") or "keep all that belongs to an episode on self"
        runner.fail("determinism", f"two episodes at once differ from one: {apart}; {why}")
    if shared.first("process"):
        runner.fail("determinism", shared.first("process"))


async def _confirm_blocks(runner: Runner, first: list[Block], tasks: list[Task]) -> None:
    """An act that blocks in every round blocks; one that did so once met a cold cache."""
    later = runner.watch.blocks[len(first) :]
    suspects = {block.act for block in first} & {block.act for block in later}
    for _ in range(CONFIRMATIONS if suspects else 0):
        runner.watch.blocks.clear()
        await play_all(runner, tasks)
        later = list(runner.watch.blocks)
        suspects &= {block.act for block in later}
    for act in sorted(suspects):
        worst = max((one for one in later if one.act == act), key=lambda one: one.seconds)
        runner.fail("blocking", _blocking(act, f"for {worst.seconds:.2f} s"), worst.stack)
    runner.settle("blocking")


def _blocking(act: str, how_long: str) -> str:
    return (
        f"{act} blocks the event loop {how_long}, and every other episode of its host with it: await what "
        "waits, write a tool that blocks as a plain def, and call the rest through asyncio.to_thread"
    )


async def _check_rewards(runner: Runner, episodes: Episodes, tasks: list[Task]) -> None:
    hold_to_rewards(runner, episodes, tasks)
    for task in tasks[:2]:
        rewards = (await runner.episode(task, "silent")).rewards
        if full(rewards):
            runner.fail("idle", f"an episode without any answer scores {rewards}: mend score()")
    if not any(episode["rewards"] for episode in episodes.values()):
        for check in ("expert", "idle", "range"):
            runner.skip(check, "score() gives no rewards of its own: a judge has to")
    elif not runner.has_expert:
        why = "it offers no expert, so no tool was used the way it is meant"
        runner.skip("expert", "an agent plays it: see below" if runner.has_agent else why)
    runner.settle("expert", "idle", "range", "pickle")


async def _check_odd_arguments(runner: Runner, task: Task) -> None:
    for value in ODD_VALUES:
        session = EnvSession(runner.make(), runner.deadlines)
        try:
            await runner.act("reset()", session.open(task))
            for name, tool in session.tools.items():
                odd = dict.fromkeys(tool.schema.parameters["properties"], value)
                await runner.act(f"tool {name!r}", session.step("", (ToolCall(name, odd),)))
        except EnvFault as fault:
            runner.fault(fault, task)
            raise Broken from None
        finally:
            await runner.close(session, "close()")
    runner.settle("acts")


async def _check_close(runner: Runner, task: Task) -> None:
    await runner.close(EnvSession(runner.make(), runner.deadlines), "close() without reset()")
    session = EnvSession(runner.make(), runner.deadlines)
    await runner.act("reset()", session.open(task))
    await runner.close(session, "close()")
    await runner.close(session, "a second close()")


async def _check_cuts(runner: Runner, tasks: list[Task]) -> None:
    """An act that its deadline cuts off has to end, and what it took has to be let go."""
    before = held(runner.folder)
    for first_time in (True, False):
        if not first_time:
            before = held(runner.folder)
        for task in tasks:
            await _cut_off(runner, task)
    left = await left_since(before, runner.folder)
    if left:
        runner.fail(
            "leaks",
            f"{len(tasks)} episodes that a deadline cut off left {left}: close() has to end what a "
            "reset() or a tool had begun",
        )
    runner.settle("deadlines", "close", "leaks")


async def _cut_off(runner: Runner, task: Task) -> None:
    at_once = Deadlines(0.0, 0.0, 0.0, runner.spec.seconds)
    session = EnvSession(runner.make(), at_once)
    await _suffer(runner, "reset()", session.open(task))
    await runner.close(session, "close() after a reset() that was cut off")
    if not runner.has_expert:
        return
    session = EnvSession(runner.make(), runner.deadlines)
    await runner.act("reset()", session.open(task))
    session.deadlines = at_once
    message = next(session.env.expert(task))
    step = session.step(message.content, message.tool_calls)
    await _suffer(runner, called(message), step)
    await runner.close(session, f"close() after {called(message)} was cut off")


async def _suffer(runner: Runner, label: str, act: Awaitable[object]) -> None:
    """Await what is cut off where it first waits."""
    try:
        await runner.act(label, act, seconds=LET_GO_SECONDS)
    except EnvFault as fault:
        if fault.kind != "timeout":
            runner.fail(
                "deadlines",
                f"cut off at its deadline, {label} raised {told(fault)}: let CancelledError through",
                fault.trace,
            )


def main() -> None:
    """Check the environment of the `Spec` that is the first argument."""
    spec = Spec(**json.loads(sys.argv[1]))
    os.set_inheritable(spec.findings_fd, False)
    adopt_orphans()
    clock = Clock(AHEAD_SECONDS if spec.role == "later" else 0.0)

    def stuck(act: Stuck) -> None:
        send(spec.findings_fd, {"finding": _of_stuck(act).__dict__})
        _end(spec)

    watch = Watch(spec.seconds + GRACE_SECONDS, stuck)
    if spec.role == "later":
        clock.install()
    try:
        asyncio.run(check_all(Runner(spec, clock, watch)))
    except Broken:
        pass
    except (UnknownEnv, BadSettings) as error:
        send(spec.findings_fd, {"bad": str(error)})
    _end(spec)


def _end(spec: Spec) -> NoReturn:
    """At once: a thread or an exit handler of the environment's could wait for ever."""
    end_children()
    send(spec.findings_fd, {"end": True})
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
