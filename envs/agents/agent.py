"""`agent`: a program that knows nothing of Dorado plays, and is scored on what it leaves.

    [[env]]
    id = "agent"
    config = { agent = "solver.py", tasks = "tasks.jsonl", answer_file = "answer.txt" }

Flows in: tasks, as rows of a file or as task folders (`envs.agents.task_folder`). The agent is a script, a
function (`solver.py:solve`), or any command; it has the policy's address in its environment, in the
variables of OpenAI's and Anthropic's libraries. Flows out: named rewards by a verifier (a script that runs
afterwards, in a sandbox of its own), by a file's content, or by the judges of `[[env]]`. Refuses: to run an
agent with less isolation than asked.
"""

import json
import random
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from envs.agents import call
from envs.agents.access import ModelAccess
from envs.agents.task_folder import read_tasks
from envs.agents.workshop import Ended, Workshop
from envs.env import Env, EnvConfig, Split, Task
from envs.message import JsonObject, Message
from envs.rows import each, file_rows
from envs.sandbox.bubblewrap import INSTALL
from envs.session import HostFault


class AgentConfig(EnvConfig):
    """agent: a Python script, or a function in one (`FILE.py:NAME`), which is called with the task's data.
    command: how it is run instead; `{python}`, `{agent}`, `{instruction}`, `{model}` and `{url}` are filled
    in. Every agent gets the instruction (a function: its task, as JSON) as standard input too.

    tasks: a file of rows with `instruction`, and optionally `files` (text by name) and `answer`; or a
    folder of task folders. heldout: the same, held out; without it a tenth is, by the hash of the content.
    model: the policy's name for the agent. sandbox: where it runs. readable: paths of the host that it may
    read there. variables: more of its environment. answer_file: a file that has to hold the row's `answer`.
    verifier: a script, for tasks that have none of their own. crash: what an exit code other than 0 means.
    dockerfile: what becomes of a task folder that has one.
    """

    agent: str = ""
    command: str | tuple[str, ...] = ()
    tasks: str
    heldout: str | None = None
    model: str = Field("policy", min_length=1)
    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    readable: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    answer_file: str = ""
    verifier: str = ""
    crash: Literal["fault", "score"] = "fault"
    dockerfile: Literal["refuse", "ignore"] = "refuse"

    @model_validator(mode="after")
    def _is_one(self) -> "AgentConfig":
        if not self.agent and not self.command:
            raise ValueError('name an agent (agent = "solver.py") or a command')
        if self.agent and not Path(self.script).is_file():
            raise ValueError(f"agent {self.agent!r}: there is no file {self.script}")
        for key in ("tasks", "heldout", "verifier"):
            path = getattr(self, key)
            if path and not Path(path).exists():
                raise ValueError(f"{key}: there is no {path}")
        if self.answer_file and self.verifier:
            raise ValueError("give answer_file or verifier, not both")
        return self

    @property
    def script(self) -> str:
        """The agent's file."""
        file, mark, _ = self.agent.rpartition(":")
        return str(Path(file if mark and file.endswith(".py") else self.agent).absolute())

    @property
    def function(self) -> str:
        """The agent's function; "" for a script."""
        file, mark, name = self.agent.rpartition(":")
        return name if mark and file.endswith(".py") else ""


class Agent(Env):
    """One agent's attempt at one task."""

    name = "agent"
    reward_names = None
    config_type = AgentConfig
    config: AgentConfig

    def probe(self) -> None:
        if self.config.sandbox == "bubblewrap" and shutil.which("bwrap") is None:
            raise ValueError(
                f'{INSTALL}; or name sandbox = "none": the agent may then do what you may'
            )
        if not self._tasks("train"):
            raise ValueError(f"{self.config.tasks} has no task to train on")

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        """Endless: the tasks of the split, shuffled anew with every pass. Raises ValueError."""
        found = self._tasks(split)
        if not found:
            raise ValueError(f"{self.config.tasks}: no task is in the split {split}; give heldout")
        rng = random.Random(f"{split}/{seed}")
        while True:
            yield from rng.sample(found, len(found))

    def _tasks(self, split: Split) -> list[Task]:
        config = self.config
        path = config.heldout if split == "heldout" and config.heldout else config.tasks
        found = [Task(self.name, data) for data in _read(path, config.dockerfile == "ignore")]
        return found if config.heldout else [task for task in found if task.split == split]

    async def reset(self, task: Task) -> list[Message]:
        if self.config.sandbox == "bubblewrap" and shutil.which("bwrap") is None:
            raise HostFault(f"environment {self.name!r}: {INSTALL}")
        self.task = task.data
        self.served_model = self.config.model
        self.notes["sandbox"] = self.config.sandbox
        readable = [str(Path(p).absolute()) for p in self.config.readable]
        if self.config.agent:
            readable += [self.config.script, str(Path(call.__file__).resolve())]
        self.shop = Workshop(self.config.sandbox, readable)
        for name, text in _files(self.task).items():
            self.shop.put(name, text)
        return [Message("user", str(self.task["instruction"]))]

    async def play(self, access: ModelAccess) -> str:
        stdin = str(self.task["instruction"])
        if self.config.function:
            stdin = json.dumps(self.task)
        ended = await self.shop.run(
            self._argv(access), access=access, more=self.config.variables, stdin=stdin
        )
        if ended.code and self.config.crash == "fault":
            raise _failed("the agent", ended)
        self.answer = ended.output.strip()
        return ended.output

    def _argv(self, access: ModelAccess) -> list[str]:
        config = self.config
        if not config.command:
            if config.function:
                return [sys.executable, call.__file__, config.script, config.function]
            return [sys.executable, config.script]
        words = shlex.split(config.command) if isinstance(config.command, str) else config.command
        filled = {
            "{python}": sys.executable,
            "{agent}": config.script if config.agent else "",
            "{instruction}": str(self.task["instruction"]),
            "{model}": access.model,
            "{url}": access.url,
        }
        return [_filled(word, filled) for word in words]

    async def score(self) -> dict[str, float]:
        config, folder = self.config, self.task.get("folder")
        if config.answer_file:
            left = self.shop.read(f"app/{config.answer_file}")
            right = left is not None and left.strip() == str(self.task.get("answer", "")).strip()
            return {"solved": float(right)}
        if isinstance(folder, str):
            test = Path(folder) / str(self.task["test"])
            return await self._verified(test, test.parent)
        if config.verifier:
            script = Path(config.verifier).absolute()
            return await self._verified(script, script.parent)
        return {}

    async def _verified(self, script: Path, folder: Path) -> dict[str, float]:
        """Run a script in the workspace. It writes `/logs/verifier/reward.txt`, a number, or `reward.json`,
        named numbers; or it ends with 0 for right and with 1 for wrong. Raises RuntimeError for anything
        else."""
        self.shop.clear("logs/verifier")
        inside = "/tests" if self.shop.level == "bubblewrap" else str(folder)
        answer = {"TASK": json.dumps(self.task), "TEST_DIR": inside}
        argv = ["bash", f"{inside}/{script.name}"]
        ended = await self.shop.run(argv, more=answer, shown={"/tests": str(folder)})
        if (text := self.shop.read("logs/verifier/reward.txt")) is not None:
            return {"solved": float(text)}
        if (text := self.shop.read("logs/verifier/reward.json")) is not None:
            return {str(name): float(value) for name, value in json.loads(text).items()}
        if ended.code not in (0, 1):
            raise _failed(f"the verifier {script}", ended)
        return {"solved": float(ended.code == 0)}

    async def close(self) -> None:
        if hasattr(self, "shop"):
            self.shop.remove()


def _failed(who: str, ended: Ended) -> RuntimeError:
    """The failure of a program; its output is a note, which the first traceback ends with."""
    last = ended.output.strip().rpartition("\n")[2][:300]
    error = RuntimeError(f"{who} ended with code {ended.code}: {last}")
    error.add_note(ended.output[-20_000:])
    return error


def _filled(word: str, values: dict[str, str]) -> str:
    """The word with each placeholder filled in; what a value holds is not looked at again."""
    for name, value in values.items():
        if name in word:
            head, _, rest = word.partition(name)
            return _filled(head, values) + value + _filled(rest, values)
    return word


def _files(task: JsonObject) -> dict[str, str | bytes]:
    if isinstance(folder := task.get("folder"), str):
        path = Path(folder)
        found = {one.path: one for one in read_tasks(path.parent, without_docker=True)}
        return dict(found[path].files)
    files = task.get("files", {})
    return {str(name): str(text) for name, text in files.items()} if files else {}


@lru_cache(maxsize=8)
def _read(path: str, without_docker: bool) -> tuple[JsonObject, ...]:
    """The data of all tasks of a file or a folder. Raises ValueError."""
    if Path(path).is_dir():
        folders = read_tasks(Path(path).absolute(), without_docker=without_docker)
        return tuple(
            {
                "instruction": one.instruction,
                "folder": str(one.path),
                "test": str(one.test.relative_to(one.path)),
            }
            for one in folders
        )
    return tuple(row for _, row in each(file_rows(path), f"tasks {path}", _row))


def _row(row: JsonObject) -> JsonObject:
    """A row as a task's data. Raises ValueError."""
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise ValueError("'instruction' has to be a text, what the agent is asked")
    if row.get("files") is not None and not isinstance(row["files"], dict):
        raise ValueError("'files' has to be an object of texts by name")
    return dict(row)
