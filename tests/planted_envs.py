"""Environments with one defect each, for `dorado env check`; otherwise they are the calculator."""

import asyncio
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
from datetime import datetime

from envs.builtin.calculator import Calculator
from envs.env import Task, say
from envs.message import Message
from envs.session import HostFault
from envs.tool import tool


class LeakingProcess(Calculator):
    """Starts a server for each episode and never ends it."""

    async def reset(self, task):
        self.server = await asyncio.create_subprocess_exec("sleep", "1000")
        return await super().reset(task)


class LeakingOrphan(Calculator):
    """What it starts hands its work to a process that outlives it."""

    async def reset(self, task):
        await (await asyncio.create_subprocess_shell("setsid sleep 1000 &")).wait()
        return await super().reset(task)


class LeakingPort(Calculator):
    """Listens, and never stops."""

    async def reset(self, task):
        self.listener = socket.create_server(("127.0.0.1", 0))
        _HELD.append(self.listener)
        return await super().reset(task)


class LeakingThread(Calculator):
    """A thread per episode that nobody tells to end."""

    async def reset(self, task):
        threading.Thread(target=threading.Event().wait, daemon=True, name="poller").start()
        return await super().reset(task)


class LeakingFile(Calculator):
    """A temporary file per episode."""

    async def reset(self, task):
        descriptor, _ = tempfile.mkstemp(suffix=".world")
        os.close(descriptor)
        return await super().reset(task)


class LeakingWhenCut(Calculator):
    """Lets go of its process only where reset() came to its end."""

    server = None

    async def reset(self, task):
        server = subprocess.Popen(["sleep", "1000"])
        await asyncio.sleep(0.01)
        self.server = server
        return await super().reset(task)

    async def close(self):
        if self.server is not None:
            self.server.kill()
            self.server.wait()


_HELD: list[socket.socket] = []


class BlockingCall(Calculator):
    """Sleeps on the event loop."""

    @tool
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        time.sleep(0.2)
        return await super().add(a, b)


class BlockingForEver(Calculator):
    """Never gives the event loop back."""

    async def reset(self, task):
        threading.Event().wait()
        return []


class RandomReset(Calculator):
    """Throws dice that no seed knows of."""

    async def reset(self, task):
        opening = await super().reset(task)
        return [*opening, Message("user", f"hint {random.random()}")]


class HashOrder(Calculator):
    """Goes through a set of texts, whose order differs between processes."""

    async def reset(self, task):
        opening = await super().reset(task)
        return [*opening, Message("user", " ".join({"north", "east", "south", "west", "up"}))]


class RandomTasks(Calculator):
    """Draws tasks without the generator it is given."""

    def sample(self, rng):
        return super().sample(random.Random())


class OverlappingSplits(Calculator):
    """Its tasks() knows no split."""

    def tasks(self, split, seed):
        rng = random.Random(seed)
        while True:
            yield Task(self.name, self.sample(rng))


class FewTasks(Calculator):
    """So few different tasks that none of them is held out."""

    def sample(self, rng):
        return super().sample(random.Random(1))


class EndingTasks(Calculator):
    """Training runs out of tasks."""

    def tasks(self, split, seed):
        tasks = super().tasks(split, seed)
        return (next(tasks) for _ in range(20))


class UnpicklableState(Calculator):
    """Keeps a function that it made in reset()."""

    async def reset(self, task):
        opening = await super().reset(task)
        self.judge = lambda answer: answer == str(self.expected)
        return opening


class UnpicklableFromBirth(Calculator):
    """Opens something before there is an episode."""

    def __init__(self, config):
        super().__init__(config)
        self.lock = threading.Lock()


class RewardOutsideRange(Calculator):
    """Pays more than it says."""

    async def score(self):
        return {name: 5 * value for name, value in (await super().score()).items()}


class DeclaredRange(RewardOutsideRange):
    """Says what it pays: no defect."""

    reward_range = (0.0, 5.0)


class UndescribedTool(Calculator):
    """A tool the policy is told nothing of."""

    @tool
    async def power(self, a: int, b: int) -> int:
        return a**b


class HangingReset(Calculator):
    """Waits for what never comes."""

    async def reset(self, task):
        await asyncio.Event().wait()
        return []


class DeafReset(Calculator):
    """Goes on when it is told to stop."""

    async def reset(self, task):
        while True:
            try:
                await asyncio.sleep(0.01)
                return await super().reset(task)
            except asyncio.CancelledError:
                await self._try_for_ever()
        return []

    async def _try_for_ever(self):
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


class NeverEnding(DeafReset):
    """Deaf from the start."""

    async def reset(self, task):
        await self._try_for_ever()
        return []


class RaisingClose(Calculator):
    """Its close() raises."""

    async def close(self):
        raise RuntimeError("there is no connection")


class CloseNeedsReset(Calculator):
    """Its close() reads what only reset() sets."""

    async def close(self):
        self.calls += 1


class HurriedScore(Calculator):
    """Pays less as time passes."""

    async def reset(self, task):
        self.began = time.monotonic()
        return await super().reset(task)

    async def score(self):
        share = 1.0 if time.monotonic() - self.began < 30 else 0.5
        return {name: share * value for name, value in (await super().score()).items()}


class DatedReset(Calculator):
    """Its world has today's date."""

    async def reset(self, task):
        return [*await super().reset(task), Message("user", f"{datetime.now():%Y-%m-%d}")]


class DatedByHand(Calculator):
    """Asks for the time with what it imports late."""

    async def reset(self, task):
        from datetime import date

        return [*await super().reset(task), Message("user", str(date.today()))]


class FailingExpert(Calculator):
    """Its expert cannot do sums."""

    def expert(self, task):
        yield say("42 or so")


class GenerousScore(Calculator):
    """Pays for any answer."""

    async def score(self):
        return {"solved": float(self.answer is not None)}


class MissingServer(Calculator):
    """Needs what this machine does not have."""

    async def reset(self, task):
        raise HostFault("no server at 127.0.0.1:9")


class RaisingScore(Calculator):
    """Takes it that there is an answer."""

    async def score(self):
        return {"solved": float(self.answer.strip() == str(self.expected))}


class RaisingTool(Calculator):
    """A negative number breaks it."""

    @tool
    async def add(self, a: int, b: int) -> int:
        """a plus b"""
        if a < 0:
            raise ZeroDivisionError("no negative numbers")
        return await super().add(a, b)


class ExitingReset(Calculator):
    """Ends the process that runs it, and leaves another behind."""

    async def reset(self, task):
        subprocess.Popen(["sleep", "1000"])
        os._exit(7)


class WarmingUp(Calculator):
    """Blocks in its first episode, as an import does, and keeps one process for all: no defect."""

    async def reset(self, task):
        if not _WARM:
            time.sleep(0.2)
            _WARM.append(subprocess.Popen(["sleep", "1000"]))
        return await super().reset(task)


_WARM: list[subprocess.Popen[bytes]] = []
