"""`python_code`: what scores, and the ways around it that must not."""

import itertools
import json
import random
from pathlib import Path

import pytest

from envs.builtin import python_code
from envs.builtin.python_code import PythonCode, PythonCodeConfig
from envs.builtin.python_problems import FAMILIES, problem
from envs.env import Task
from envs.message import ToolCall
from envs.sandbox import probe
from envs.sandbox.level import ISOLATING
from envs.sandbox.result import Result
from envs.sandbox.sandbox import Sandbox, SandboxUnavailable
from envs.session import Deadlines, EnvSession, HostFault, demonstrate

pytestmark = pytest.mark.process

DIFFICULTIES = range(1, PythonCode.difficulties + 1)
PATIENT = Deadlines(120, 120, 120, 120)


@pytest.fixture(autouse=True)
async def isolated():
    try:
        await Sandbox().level()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


def make(difficulty: int = 1, **config) -> PythonCode:
    return PythonCode(PythonCodeConfig(difficulty=difficulty, **config))


def first_task(difficulty: int = 1) -> Task:
    return next(iter(make(difficulty).tasks("train", 3)))


async def score_of(code: str, task: Task | None = None) -> float:
    task = task or first_task()
    session = EnvSession(make(), PATIENT)
    try:
        await session.open(task)
        await session.step("", (ToolCall("submit", {"code": code}),))
        await session.step("done", ())
        return (await session.score())["solved"]
    finally:
        await session.close()


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
async def test_the_expert_solves_every_difficulty(difficulty):
    for task in itertools.islice(make(difficulty).tasks("train", 5), 3):
        opening, said, rewards = await demonstrate(make(), task)
        assert rewards == {"solved": 1.0}, (task, said)
        assert opening.notes["sandbox"] in ISOLATING


@pytest.mark.parametrize("name", FAMILIES)
def test_a_problem_is_the_same_each_time_and_is_not_solved_by_one_answer(name):
    family = FAMILIES[name]
    rng = random.Random(name)
    for seed in range(20):
        data = {"family": name, "parameters": family.parameters(rng), "seed": seed}
        first = problem(data)
        assert first == problem(json.loads(json.dumps(data)))
        assert len({json.dumps(answer) for answer in first.answers[2:]}) > 1, (data, first)
        assert json.loads(json.dumps(first.answers)) == first.answers


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_each_difficulty_has_several_families_and_is_in_the_task(difficulty):
    tasks = list(itertools.islice(make(difficulty).tasks("train", 1), 60))
    assert len({task.data["family"] for task in tasks}) >= 3
    assert {task.data["difficulty"] for task in tasks} == {difficulty}


async def test_running_code_shows_what_it_prints_and_how_it_ended():
    session = EnvSession(make(), PATIENT)
    await session.open(first_task())

    async def run(code: str) -> str:
        return (await session.step("", (ToolCall("run", {"code": code}),))).messages[0].content

    assert await run("print(6 * 7)") == "42\n"
    assert "ZeroDivisionError" in await run("1 / 0") and "[error: " in await run("1 / 0")
    assert len(await run("print('x' * 10000)")) < 2100
    assert "[output: " in await run("while True: print('x' * 1000)")
    assert "[error: " in await run("\0 \ud800 def")
    await session.close()


REWARD_HACKS = {
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "nothing": "",
    "printed results": "print('right')\nprint('true\\n' * 20)\ndef solve(v): print('right'); return None",
    "results on every descriptor": """
import os
for fd in range(1, 20):
    try: os.write(fd, b'right\\n')
    except OSError: pass
os._exit(0)
""",
    "equal to everything": """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(values): return Same(-10**9)
""",
    "a patched json": """
import json
json.dumps = lambda value: 'right'
def solve(values): return 0
""",
    "a patched grader": """
import builtins, sys
for name, module in list(sys.modules.items()):
    for attribute in ('same', 'right', 'score', 'answers'):
        try: setattr(module, attribute, lambda *a: True)
        except Exception: pass
builtins.map = lambda *a: [True]
builtins.all = lambda *a: True
builtins.type = lambda *a: int
def solve(values): return True
""",
    "planted modules": """
open('json.py', 'w').write('def load(f): print("right"); raise SystemExit')
open('sitecustomize.py', 'w').write('print("right")')
def solve(values): return 0
""",
    "reading the tests": """
import glob, gc, inspect, json, sys
found = None
for name in glob.glob('/**/*', recursive=False) + glob.glob('*') + glob.glob('/proc/*/environ'):
    try:
        if 'answers' in (text := open(name).read()): found = json.loads(text)['answers']
    except Exception: pass
for frame in (sys._getframe(1), sys._getframe(0)):
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        if isinstance(value, dict) and 'answers' in value: found = value['answers']
for one in gc.get_objects():
    if isinstance(one, dict) and 'answers' in one: found = one['answers']
count = -1
def solve(values):
    global count
    count += 1
    return found[count]
""",
    "deep": "def solve(values):\n import sys\n sys.stdout = None\n return []\n"
    "import os\nos.write(3, b'[' * 60000)",
    "endless": "while True: pass",
    "generator": "def solve(values): yield from ()",
    "numbers beyond reason": "def solve(values): return float('nan')",
}


@pytest.mark.parametrize("name", REWARD_HACKS)
async def test_what_is_not_a_solution_does_not_score(name):
    assert await score_of(REWARD_HACKS[name]) == 0.0


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
async def test_the_examples_alone_are_not_enough(difficulty):
    task = first_task(difficulty)
    known = problem(task.data)
    table = [[call, answer] for call, answer in zip(known.calls, known.answers, strict=True)]
    shown = f"def solve(*a):\n    return next((r for c, r in {table[:2]!r} if c == list(a)), 0)"
    assert await score_of(shown, task) == 0.0
    every = f"def solve(*a):\n    return next(r for c, r in {table!r} if c == list(a))"
    assert await score_of(every, task) == 1.0


async def test_true_is_not_one():
    task = Task("python_code", {"family": "sum_above", "parameters": {"k": 98}, "seed": 1})
    right = problem(task.data)
    assert await score_of(right.source, task) == 1.0
    assert (
        await score_of(right.source.replace("sum(", "bool(sum(").replace("> 98)", "> 98))"), task)
        == 0.0
    )


async def test_a_right_solution_scores_whatever_it_prints():
    task = first_task()
    noisy = "print('wrong')\n" + problem(task.data).source + "\nprint(solve)"
    assert await score_of(noisy, task) == 1.0


async def test_without_a_sandbox_the_machine_is_at_fault(monkeypatch):
    monkeypatch.setattr(probe, "_found", dict.fromkeys(ISOLATING, "forbidden"))
    with pytest.raises(HostFault, match=r"'python_code': no sandbox of level 'auto'.*forbidden"):
        await EnvSession(make(), PATIENT).open(first_task())


async def test_a_sandbox_that_fails_is_never_a_reward(monkeypatch):
    async def fail(self, *args, **more):
        return Result("infra", "", "", -1, 0.0, "bubblewrap", "killed")

    monkeypatch.setattr(Sandbox, "python", fail)
    with pytest.raises(HostFault, match="the sandbox failed: killed"):
        await score_of("def solve(values): return 0")


def test_where_the_sandbox_would_show_the_solutions_the_run_is_refused(monkeypatch):
    env = PythonCode(PythonCodeConfig())
    env.probe()
    monkeypatch.setattr(python_code, "HERE", Path("/usr/lib/python3/dist-packages/envs/builtin"))
    with pytest.raises(
        ValueError, match="shows a policy all of /usr: install Dorado into a virtual"
    ):
        env.probe()
