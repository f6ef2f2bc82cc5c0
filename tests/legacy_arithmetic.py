"""An environment of verifiers' older kind, as its author would write one; nothing of ours is known to it."""

import verifiers as vf  # pyright: ignore[reportMissingImports]
from datasets import Dataset


async def add(a: int, b: int) -> str:
    """a plus b"""
    return str(int(a) + int(b))


def load_environment(num_examples: int = 30, held_back: bool = False) -> vf.Environment:
    """Sums with a tool, and a rubric of two functions."""

    def rows(first: int):
        numbers = range(first, first + num_examples)
        return Dataset.from_list(
            [{"question": f"{i} plus {i} ?", "answer": str(2 * i)} for i in numbers]
        )

    def exact(completion, answer) -> float:
        return float(completion[-1]["content"].strip() == answer)

    def short(completion) -> float:
        return float(len(completion[-1]["content"]) < 9)

    more = {"eval_dataset": rows(100)} if held_back else {}
    rubric = vf.Rubric(funcs=[exact, short], weights=[1.0, 0.5])
    return vf.ToolEnv(dataset=rows(0), rubric=rubric, tools=[add], max_turns=6, **more)
