"""`dorado env new`: the package that an author begins with. It passes its check as it is."""

import keyword
import re
import sys
from pathlib import Path
from string import Template

from envs.registry import env_names
from rl.config_file import ConfigError

_OURS = ("envs", "reward", "rl", "rollout", "trainer", "tests")

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "An environment for Dorado"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["dorado-rl"]

[project.entry-points."dorado.envs"]
$name = "$module.environment:$class_name"

[tool.setuptools]
packages = ["$module"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""

_ENVIRONMENT = '''\
"""A shelf with boxes: find the box that holds an item, and move the item to the box that is asked for.

    user: move the key to box 3       assistant: look(box=1)                     tool: rope
    assistant: look(box=2)            tool: key, lamp
    assistant: move(item=key, box=3)  tool: ok          assistant: done
"""

import random
from typing import Any

from pydantic import Field

from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import Message
from envs.tool import ToolError, tool

ITEMS = ("bell", "coin", "drum", "flag", "key", "lamp", "map", "pen", "ring", "rope", "saw", "vase")


class ${class_name}Config(EnvConfig):
    """difficulty: 1 to 3, how many boxes there are beyond two."""

    difficulty: int = Field(default=1, ge=1, le=3)


class $class_name(Env):
    """Move one item to the right box; everything else stays where it is."""

    name = "$name"
    config_type = ${class_name}Config
    config: ${class_name}Config
    difficulties = 3

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """All that makes a task what it is: a task's data decides its split."""
        count = 2 + self.config.difficulty
        items = rng.sample(ITEMS, 2 * count)
        boxes = [sorted(items[2 * i : 2 * i + 2]) for i in range(count)]
        start, goal = rng.sample(range(1, count + 1), 2)
        return {
            "difficulty": self.config.difficulty,
            "boxes": boxes,
            "item": rng.choice(boxes[start - 1]),
            "goal": goal,
        }

    async def reset(self, task: Task) -> list[Message]:
        """Build the world of this task alone, so that every reset of it is the same."""
        self.task = task.data
        self.boxes = {i: set(items) for i, items in enumerate(task.data["boxes"], start=1)}
        text = "{item} to box {goal}".format(**task.data)
        return [Message("user", f"There are boxes 1 to {len(self.boxes)}. Move the {text}.")]

    @tool(read_only=True)
    async def look(self, box: int) -> str:
        """what is in a box"""
        if box not in self.boxes:
            raise ToolError(f"no box {box}")  # the policy reads this, and the episode goes on
        return ", ".join(sorted(self.boxes[box])) or "nothing"

    @tool
    async def move(self, item: str, box: int) -> str:
        """put an item into a box"""
        if box not in self.boxes:
            raise ToolError(f"no box {box}")
        for items in self.boxes.values():
            if item in items:
                items.remove(item)
                self.boxes[box].add(item)
                return "ok"
        raise ToolError(f"no item {item!r}")

    async def score(self) -> dict[str, float]:
        """Judged on the world as it is at the end, not on what was said."""
        wanted = {i: set(items) for i, items in enumerate(self.task["boxes"], start=1)}
        for items in wanted.values():
            items.discard(self.task["item"])
        wanted[self.task["goal"]].add(self.task["item"])
        return {"solved": float(self.boxes == wanted)}

    def expert(self, task: Task) -> Expert:
        """How it is done: for the cold start, and for the check. It uses the tools as a policy would."""
        for box in range(1, len(task.data["boxes"]) + 1):
            found = (yield call("look", box=box))[0]
            if task.data["item"] in found.split(", "):
                break
        yield call("move", item=task.data["item"], box=task.data["goal"])
        yield say("done")
'''

_TEST = '''\
"""The environment keeps its promises, at every difficulty."""

import pytest
from rl.env_tools.check.run import check

from $module.environment import $class_name


@pytest.mark.parametrize("difficulty", range(1, $class_name.difficulties + 1))
def test_it_passes_its_check(difficulty):
    report = check("$module.environment:$class_name", {"difficulty": difficulty})
    assert report.passed, str(report)
'''

_README = """\
# $name

An environment for Dorado: $class_name, in `$module/environment.py`.

```
dorado env check $module/environment.py:$class_name    # does it keep its promises? no model is needed
dorado env play $module/environment.py:$class_name     # play it yourself
pytest                                                 # the check, at every difficulty
pip install --no-deps -e .                             # from now on it is called $name
dorado env check $name
```

In a run's configuration:

```toml
[[env]]
id = "$name"
config = { difficulty = 2 }
```
"""


def write_package(name: str, parent: Path) -> Path:
    """Write the folder `parent/name` and return it. Raises ConfigError."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        raise ConfigError(f"{name!r} has to be small letters, digits, - and _, such as ticket-desk")
    module = name.replace("-", "_")
    taken = {*sys.stdlib_module_names, *_OURS, *keyword.kwlist}
    if module in taken or name in env_names():
        raise ConfigError(f"{name!r} is the name of something else already: choose another")
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"{folder} exists already")
    words = {
        "name": name,
        "module": module,
        "class_name": "".join(word.capitalize() for word in module.split("_")),
    }
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"{module}/__init__.py": f'"""The environment {name}."""\n',
        f"{module}/environment.py": _ENVIRONMENT,
        f"tests/test_{module}.py": _TEST,
    }
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(Template(text).substitute(words), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    return folder
