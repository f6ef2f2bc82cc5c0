"""Write a Python function that passes hidden tests; it runs in a sandbox.

user: Write solve(values): the sum of those values that are greater than 7 …
assistant: run(code=…)      tool: 12      assistant: submit(code=…)      tool: submitted
assistant: done

What was submitted is judged in two sandboxes. In the first the code answers calls, as JSON values; it holds
no right answer and no test but the arguments. In the second, which the code never enters, our program
compares. So there is nothing to patch, read, or print that would help: only right values score.
"""

import json
import random
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from envs.builtin.python_problems import NUM_EXAMPLES, Problem, draw, problem
from envs.env import Deadlines, Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.sandbox.job import Job, own_python
from envs.sandbox.limits import MIB, Limits
from envs.sandbox.result import Result
from envs.sandbox.sandbox import Choice, Sandbox, SandboxUnavailable
from envs.session import HostFault
from envs.tool import tool

LIMITS = Limits(
    wall_seconds=12, cpu_seconds=3, memory_bytes=256 * MIB, processes=16, disk_bytes=16 * MIB
)
HERE = Path(__file__).resolve().parent
_SHOWN = 2000  # characters of output that the policy reads
# What it prints goes elsewhere than its answers.
_ANSWER = """
import json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
calls = json.load(sys.stdin)
scope = {"__name__": "solution"}
exec(compile(open("solution.py", errors="surrogateescape").read(), "solution.py", "exec"), scope)
for arguments in calls:
    print(json.dumps(scope["solve"](*arguments)), file=out, flush=True)
"""
_COMPARE = """
import json, sys

def same(a, b):
    if type(a) is not type(b):
        return False
    if type(a) is list:
        return len(a) == len(b) and all(map(same, a, b))
    return a == b

given = json.load(sys.stdin)
lines = given["answered"].split("\\n")
right = len(lines) == len(given["answers"]) + 1 and not lines[-1]
for line, answer in zip(lines, given["answers"]):
    try:
        right = right and same(json.loads(line), answer)
    except (ValueError, RecursionError):
        right = False
print("right" if right else "wrong")
"""


class PythonCodeConfig(EnvConfig):
    """difficulty: 1 one expression, 2 a loop, 3 an algorithm, 4 a small interpreter or search. sandbox: the
    level of isolation; "auto" takes the strongest that the machine offers."""

    difficulty: int = Field(1, ge=1, le=4)
    sandbox: Choice = "auto"


class PythonCode(Env):
    """One function to write, with tools to try code and to hand it in; the last one handed in counts."""

    name = "python_code"
    reward_names = ("solved",)
    config_type = PythonCodeConfig
    config: PythonCodeConfig
    difficulties: ClassVar[int] = 4
    # A sandbox starts in some 10 ms of CPU; many episodes that ask at once wait for each other.
    deadlines = Deadlines(tool_seconds=120, score_seconds=180)

    def sample(self, rng: random.Random) -> JsonObject:
        return draw(rng, self.config.difficulty)

    def probe(self) -> None:
        shown = Job(("true",), {}, LIMITS, python=own_python()).binds
        under = [path for path in shown if HERE.is_relative_to(path)]
        if under:
            raise ValueError(
                f"its solutions lie in {HERE}, and the sandbox shows a policy all of {under[0]}: install "
                "Dorado into a virtual environment outside of it"
            )

    async def reset(self, task: Task) -> list[Message]:
        self.problem: Problem = problem(task.data)
        self.submitted: str | None = None
        self.sandbox = Sandbox(level=self.config.sandbox, limits=LIMITS)
        try:
            self.notes["sandbox"] = await self.sandbox.level()
        except SandboxUnavailable as error:
            raise HostFault(f"environment {self.name!r}: {error}") from None
        shown = [
            f"solve({', '.join(map(repr, arguments))}) == {answer!r}"
            for arguments, answer in zip(self.problem.calls, self.problem.answers, strict=True)
        ][:NUM_EXAMPLES]
        text = f"Write a Python function solve(values) that returns {self.problem.text}.\n"
        return [
            Message("user", "\n".join([text, *shown, "", "Try code with run, then submit it."]))
        ]

    @tool(read_only=True)
    async def run(self, code: str) -> str:
        """run Python code and read what it prints"""
        result = await self._in_sandbox(code)
        said = result.stdout + result.stderr
        if len(said) > _SHOWN:
            said = f"{said[: _SHOWN // 2]}\n…\n{said[-_SHOWN // 2 :]}"
        return said if result.status == "ok" else f"{said}\n[{result.status}: {result.detail}]"

    @tool
    async def submit(self, code: str) -> str:
        """hand in the code that defines solve"""
        self.submitted = code
        return "submitted"

    async def score(self) -> dict[str, float]:
        if self.submitted is None or self.answer is None:
            return {"solved": 0.0}
        files = {"solution.py": self.submitted}
        answered = await self._in_sandbox(_ANSWER, files, json.dumps(self.problem.calls))
        given = {"answered": answered.stdout, "answers": self.problem.answers}
        verdict = await self._in_sandbox(_COMPARE, {}, json.dumps(given))
        if verdict.stdout not in ("right\n", "wrong\n"):
            raise RuntimeError(f"the comparison ended as {verdict.status}: {verdict.stderr}")
        return {"solved": float(verdict.stdout == "right\n")}

    async def _in_sandbox(
        self, code: str, files: dict[str, str] | None = None, stdin: str = ""
    ) -> Result:
        """Run it. Raises HostFault where the sandbox failed: that says nothing about the code."""
        result = await self.sandbox.python(code, files=files, stdin=stdin)
        if result.status == "infra":
            raise HostFault(f"environment {self.name!r}: the sandbox failed: {result.detail}")
        return result

    def expert(self, task: Task) -> Expert:
        solution = problem(task.data)
        example = ", ".join(map(repr, solution.calls[0]))
        yield call("run", code=f"{solution.source}\nprint(solve({example}))")
        yield call("submit", code=solution.source)
        yield say("done")
