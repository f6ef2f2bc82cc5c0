"""A shell over a small tree of files in memory: find, move, edit, collect; judged on the whole tree.

user: delete the file with ada      assistant: grep(word=ada)      tool: barn/fig
assistant: rm(path=barn/fig)        tool: ok                       assistant: done

Nothing of the host is touched. Any way to the wanted tree counts; a file or folder too much or too few
does not.
"""

import random

from pydantic import Field

from envs.builtin.words import PEOPLE, PLACES, THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

KINDS = {
    1: ("mv", "cp", "rm", "write", "mkdir"),
    2: ("rm_about", "mv_about", "cp_about"),
    3: ("collect", "replace"),
    4: ("total",),
}


class ShellConfig(EnvConfig):
    """1: one act on a known path. 2: on a file to be found. 3: on several files. 4: a sum over files."""

    difficulty: int = Field(default=1, ge=1, le=4)


class Shell(Env):
    """Bring a small tree of files into the state asked for, and change nothing else."""

    name = "shell"
    reward_names = ("solved",)
    config_type = ShellConfig
    config: ShellConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        *folders, new = rng.sample(PLACES, 4 if level < 3 else 5)
        names = rng.sample(THINGS, 5 if level < 3 else 8)
        files = {f"{rng.choice(folders)}/{name}": rng.choice(PEOPLE) for name in names}
        paths = list(files)
        word, other = rng.sample(PEOPLE, 2)
        for path in paths:  # the word is in the files it is meant to be in, and nowhere else
            files[path] = rng.choice([p for p in PEOPLE if p != word])
        if level == 4:
            files = {path: str(rng.randint(1, 99)) for path in paths}
            word = paths[0].split("/")[0]
        for path in paths[: {2: 1, 3: rng.randint(2, 4)}.get(level, 0)]:
            files[path] = word if level == 2 else f"{files[path]} {word}"
        source = paths[0]
        return {
            "difficulty": level,
            "kind": rng.choice(KINDS[level]),
            "folders": sorted(folders),
            "files": dict(sorted(files.items())),
            "path": source,
            "to": rng.choice([f for f in folders if f != source.split("/")[0]]),
            "new": new,
            "word": word,
            "other": other,
        }

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.files, self.folders = dict(task.data["files"]), set(task.data["folders"])
        return [Message("user", _ASK[task.data["kind"]].format(**task.data))]

    @tool(read_only=True)
    async def ls(self, path: str) -> str:
        """list a folder"""
        path = self._folder(path)
        inside = {p for p in (*self.files, *self.folders) if _parent(p) == path and p}
        return " ".join(sorted(p.rpartition("/")[2] for p in inside)) or "empty"

    @tool(read_only=True)
    async def cat(self, path: str) -> str:
        """read a file"""
        return self.files[self._file(path)]

    @tool(read_only=True)
    async def grep(self, word: str) -> str:
        """files with a word"""
        found = sorted(path for path, text in self.files.items() if word in text.split())
        return " ".join(found) or "none"

    @tool
    async def write(self, path: str, text: str) -> str:
        """write a file"""
        self.files[self._target(path)] = text
        return "ok"

    @tool
    async def mv(self, path: str, to: str) -> str:
        """move a file"""
        path = self._file(path)
        target = self._target(to, path)
        self.files[target] = self.files.pop(path)
        return "ok"

    @tool
    async def cp(self, path: str, to: str) -> str:
        """copy a file"""
        path = self._file(path)
        self.files[self._target(to, path)] = self.files[path]
        return "ok"

    @tool
    async def rm(self, path: str) -> str:
        """delete"""
        path = _clean(path)
        if path in self.folders and not any(
            _parent(p) == path for p in (*self.files, *self.folders)
        ):
            self.folders.discard(path)  # an empty folder, so that a wrong mkdir can be mended
        else:
            del self.files[self._file(path)]
        return "ok"

    @tool
    async def mkdir(self, path: str) -> str:
        """make a folder"""
        path = self._target(path)
        if path in self.files:
            raise ToolError(f"{path!r} is a file")
        self.folders.add(path)
        return "ok"

    def _file(self, path: str) -> str:
        path = _clean(path)
        if path not in self.files:
            raise ToolError(
                f"{path!r} is a folder" if path in self.folders else f"no file {path!r}"
            )
        return path

    def _folder(self, path: str) -> str:
        path = _clean(path)
        if path and path not in self.folders:
            raise ToolError(f"no folder {path!r}")
        return path

    def _target(self, path: str, source: str = "") -> str:
        """Where a file is written: in a folder under its own name, else at the path itself."""
        path = _clean(path)
        if source and (path in self.folders or not path):
            path = f"{path}/{source.rpartition('/')[2]}".lstrip("/")
        if not path or path in self.folders:
            raise ToolError(f"{path or '/'!r} is a folder")
        self._folder(_parent(path))
        return path

    async def score(self) -> dict[str, float]:
        tree = (self.files, self.folders)
        return {"solved": float(self.answer is not None and tree == wanted(self.task))}

    def expert(self, task: Task) -> Expert:
        data = task.data
        kind, path, to = data["kind"], data["path"], data["to"]
        if kind in ("mv", "cp"):
            yield call(kind, path=path, to=to)
        elif kind == "rm":
            yield call("rm", path=path)
        elif kind == "write":
            yield call("write", path=f"{to}/{data['new']}", text=data["word"])
        elif kind == "mkdir":
            yield call("mkdir", path=data["new"])
        elif kind == "total":
            yield from _total(data)
        else:
            yield from _act_on_found(data)
        yield say("done")


_ASK = {
    "mv": "move {path} to {to}",
    "cp": "copy {path} to {to}",
    "rm": "delete {path}",
    "write": "write {word} to {to}/{new}",
    "mkdir": "make the folder {new}",
    "rm_about": "delete the file with {word}",
    "mv_about": "move the file with {word} to {to}",
    "cp_about": "copy the file with {word} to {to}",
    "collect": "move all files with {word} to a new folder {new}",
    "replace": "in all files with {word} write {other} in its place",
    "total": "write the sum of the numbers in {word} to {new}, then delete those files",
}


def _clean(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ToolError("no .. in a path")
    return "/".join(parts)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _inside(path: str, folder: str) -> str:
    return f"{folder}/{path.rpartition('/')[2]}"


def replaced(text: str, word: str, other: str) -> str:
    """The text with one word in place of another."""
    return " ".join(other if part == word else part for part in text.split())


def wanted(data: JsonObject) -> tuple[dict[str, str], set[str]]:
    """The files and folders that a task asks for."""
    files, folders = dict(data["files"]), set(data["folders"])
    kind, word = data["kind"], data["word"]
    about = [path for path, text in files.items() if word in text.split()]
    chosen = [data["path"]] if data["difficulty"] == 1 else about
    action = kind.removesuffix("_about")
    if action == "write":
        files[f"{data['to']}/{data['new']}"] = word
    elif action == "mkdir":
        folders.add(data["new"])
    elif action == "replace":
        files |= {path: replaced(files[path], word, data["other"]) for path in chosen}
    elif action == "total":
        chosen = [path for path in files if _parent(path) == word]
        files[data["new"]] = str(sum(int(files.pop(path)) for path in chosen))
    else:
        target = data["new"] if action == "collect" else data["to"]
        if action == "collect":
            folders.add(target)
        for path in chosen:
            text = files[path] if action == "cp" else files.pop(path)
            if action != "rm":
                files[_inside(path, target)] = text
    return files, folders


def _act_on_found(data: JsonObject) -> Expert:
    """Find the files with the word, and do with each what is asked."""
    kind, word = data["kind"], data["word"]
    found = (yield call("grep", word=word))[0].split()
    if kind == "collect":
        yield call("mkdir", path=data["new"])
    for path in found:
        if kind == "rm_about":
            yield call("rm", path=path)
        elif kind == "replace":
            text = (yield call("cat", path=path))[0]
            yield call("write", path=path, text=replaced(text, word, data["other"]))
        else:
            target = data["new"] if kind == "collect" else data["to"]
            yield call("cp" if kind == "cp_about" else "mv", path=path, to=target)


def _total(data: JsonObject) -> Expert:
    """Read all files of a folder, write their sum, delete them."""
    names = (yield call("ls", path=data["word"]))[0].split()
    paths = [f"{data['word']}/{name}" for name in names]
    total = 0
    for path in paths:
        text = (yield call("cat", path=path))[0]
        total += int(text) if text.isdigit() else 0
    yield call("write", path=data["new"], text=str(total))
    for path in paths:
        yield call("rm", path=path)
