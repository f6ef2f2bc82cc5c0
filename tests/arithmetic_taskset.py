"""A taskset of verifiers, as its author would write one: sums, a server of tools, rewards and a metric.

Lies on the path of the interpreter that has verifiers; nothing of ours is known to it.
"""

import asyncio

import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]


class SumData(vf.TaskData):
    answer: int
    trouble: str = ""


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def exact(self, trace: vf.Trace) -> float:
        if self.data.trouble == "broken":
            raise KeyError("no such thing")
        if self.data.trouble == "slow":
            await asyncio.sleep(1000)
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=-0.5)
    async def wordy(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) > 8)

    @vf.metric
    async def calls(self, trace: vf.Trace) -> float:
        return float(len(trace.tool_messages))


class SumConfig(vf.TasksetConfig):
    num_tasks: int = 30
    first: int = 0
    trouble: str = ""


class Adder(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = "calc"

    @vf.tool
    async def add(self, a: int, b: int) -> str:
        """a plus b"""
        return str(a + b)


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        for i in range(self.config.first, self.config.first + self.config.num_tasks):
            data = SumData(prompt=f"{i} plus {i} ?", answer=2 * i, trouble=self.config.trouble)
            yield SumTask(data, self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.SharedToolsetConfig())]


class Endless(SumTaskset):
    INFINITE = True

    def load(self):
        i = 0
        while True:
            yield SumTask(SumData(prompt=f"{i} plus {i} ?", answer=2 * i), self.config.task)
            i += 1


__all__ = ["SumTaskset"]

if __name__ == "__main__":
    Adder.run()
