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
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, cast

from pydantic import Field, model_validator

from envs.agents import call
from envs.agents.access import ModelAccess
from envs.agents.archive import archive_of
from envs.agents.provider import is_remote, misfit, obstacle, workshop
from envs.agents.task_folder import DOCKERFILE, read_task, read_tasks
from envs.agents.workshop import ContainerConfig, Ended, Plan
from envs.env import Deadlines, Env, EnvConfig, Split, Task
from envs.message import JsonObject, Message
from envs.rows import each, file_rows

_CALL = Path(call.__file__).resolve()


class AgentConfig(EnvConfig):
    """agent: a Python script, or a function in one (`FILE.py:NAME`), which is called with the task's data.
    command: how it is run instead; `{python}`, `{agent}`, `{instruction}`, `{model}` and `{url}` are filled
    in. Every agent gets the instruction (a function: its task, as JSON) as standard input too.

    tasks: a file of rows with `instruction`, and optionally `files` (text by name) and `answer`; or a
    folder of task folders. heldout: the same, held out; without it a tenth is, by the hash of the content.
    model: the policy's name for the agent. sandbox: where it runs: "bubblewrap", "none", "docker", "podman",
    or the address of a `dorado sandbox serve`. container: its image and limits there. readable: paths of
    that machine that it may read. variables: more of its environment. answer_file: a file that has to hold
    the row's `answer`. verifier: a script, for tasks that have none of their own. crash: what an exit code
    other than 0 means. dockerfile: what becomes of a task folder that has one.
    """

    agent: str = ""
    command: str | tuple[str, ...] = ()
    tasks: str
    heldout: str | None = None
    model: str = Field("policy", min_length=1)
    sandbox: str = "bubblewrap"
    container: ContainerConfig = Field(default_factory=ContainerConfig)
    readable: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    answer_file: str = ""
    verifier: str = ""
    crash: Literal["fault", "score"] = "fault"
    dockerfile: Literal["refuse", "ignore", "build"] = "refuse"

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
        if wrong := misfit(self.sandbox, self.container, builds=self.dockerfile == "build"):
            raise ValueError(wrong)
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
    # An image may have to be fetched or built, and a container's end takes its time on a busy machine.
    deadlines = Deadlines(reset_seconds=1800.0, close_seconds=60.0)
    config: AgentConfig

    def probe(self) -> None:
        if wrong := obstacle(self.config.sandbox, self.config.container):
            raise ValueError(wrong)
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
        found = [Task(self.name, data) for data in _read(path, config.dockerfile)]
        if config.answer_file and any(task.data.get("answer") is None for task in found):
            raise ValueError(
                f"tasks {path}: answer_file is held to each task's 'answer', and there is a task without one"
            )
        return found if config.heldout else [task for task in found if task.split == split]

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.served_model = self.config.model
        self.notes["sandbox"] = self.config.sandbox
        files, context = _files(self.task, builds=self.config.dockerfile == "build")
        scripts = (Path(self.config.script), _CALL) if self.config.agent else ()
        self.shop = workshop(
            Plan(
                self.config.sandbox,
                readable=tuple(
                    _absolute(path, self.config.sandbox) for path in self.config.readable
                ),
                scripts=scripts,
                container=self.config.container,
                context=context,
            )
        )
        await self.shop.open()
        await self.shop.put(files)
        return [Message("user", str(self.task["instruction"]))]

    async def play(self, access: ModelAccess) -> str:
        stdin = str(self.task["instruction"])
        if self.config.function:
            stdin = json.dumps(self.task)
        ended = await self.shop.run(
            self._argv(access), access=access, variables=self.config.variables, stdin=stdin
        )
        if ended.code and self.config.crash == "fault":
            raise _failed("the agent", ended)
        self.answer = ended.output.strip()
        return ended.output

    def _argv(self, access: ModelAccess) -> list[str]:
        config, python = self.config, self.shop.python
        agent = self.shop.at(Path(config.script)) if config.agent else ""
        if not config.command:
            if config.function:
                return [python, self.shop.at(_CALL), agent, config.function]
            return [python, agent]
        words = shlex.split(config.command) if isinstance(config.command, str) else config.command
        filled = {
            "{python}": python,
            "{agent}": agent,
            "{instruction}": str(self.task["instruction"]),
            "{model}": access.model,
            "{url}": access.url,
        }
        return [_filled(word, filled) for word in words]

    async def score(self) -> dict[str, float]:
        config, folder = self.config, self.task.get("folder")
        if config.answer_file:
            left = await self.shop.read(config.answer_file)
            right = left is not None and left.strip() == str(self.task.get("answer", "")).strip()
            return {"solved": float(right)}
        if isinstance(folder, str):
            return await self._verified(Path(folder) / str(self.task["test"]))
        if config.verifier:
            return await self._verified(Path(config.verifier).absolute())
        return {}

    async def _verified(self, script: Path) -> dict[str, float]:
        """Run a script in the workspace. It writes `/logs/verifier/reward.txt`, a number, or `reward.json`,
        named numbers; or it ends with 0 for right and with 1 for wrong. Raises RuntimeError for anything
        else."""
        verdict = await self.shop.judge(script, {"TASK": json.dumps(self.task)})
        if verdict.number is not None:
            return {"solved": float(verdict.number)}
        if verdict.named is not None:
            return {str(name): float(value) for name, value in json.loads(verdict.named).items()}
        if verdict.ended.code not in (0, 1):
            raise _failed(f"the verifier {script}", verdict.ended)
        return {"solved": float(verdict.ended.code == 0)}

    async def close(self) -> None:
        if hasattr(self, "shop"):
            await self.shop.remove()


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


def _absolute(path: str, sandbox: str) -> str:
    """A readable path; where another machine has it, it is that machine's."""
    return path if is_remote(sandbox) else str(Path(path).absolute())


def _files(task: JsonObject, *, builds: bool) -> tuple[bytes, bytes]:
    """The archives of a task: of its workspace's files, and of the folder that its image is built from."""
    if isinstance(folder := task.get("folder"), str):
        found = read_task(Path(folder))
        if builds and (context := found.context):
            return archive_of({}), context
        return found.files, b""
    files = task.get("files")
    named = cast(dict[str, object], files) if isinstance(files, dict) else {}
    return archive_of({name: str(text) for name, text in named.items()}), b""


@lru_cache(maxsize=8)
def _read(path: str, dockerfile: str) -> tuple[JsonObject, ...]:
    """The data of all tasks of a file or a folder. Raises ValueError."""
    if not Path(path).is_dir():
        return tuple(row for _, row in each(file_rows(path), f"tasks {path}", _row))
    folders = read_tasks(Path(path).absolute())
    refused = next((one.path for one in folders if (one.path / DOCKERFILE).exists()), None)
    if refused is not None and dockerfile == "refuse":
        raise ValueError(
            f'task {refused} has a Dockerfile: dockerfile = "build" makes its image (with sandbox = '
            '"docker" or "podman"), "ignore" takes the other files of its environment alone'
        )
    return tuple(
        {
            "instruction": one.instruction,
            "folder": str(one.path),
            "test": str(one.test.relative_to(one.path)),
        }
        for one in folders
    )


def _row(row: JsonObject) -> JsonObject:
    """A row as a task's data. Raises ValueError."""
    if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        raise ValueError("'instruction' has to be a text, what the agent is asked")
    if row.get("files") is not None and not isinstance(row["files"], dict):
        raise ValueError("'files' has to be an object of texts by name")
    return dict(row)
