"""Environments in a file of their own: found by path, told apart by path, and the same in every process."""

import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, field_validator

from envs.env import EnvConfig
from envs.registry import UnknownEnv, anchored, find_env, find_playable
from envs.settings import BadSettings, read_settings
from rl.cold_start import _key
from rl.config import load_config
from rl.env_table import EnvTable

ROOT = Path(__file__).parent.parent
SOURCE = """
from dataclasses import dataclass
from envs.env import Env, EnvConfig

@dataclass
class Note:
    text: str

class WorldConfig(EnvConfig):
    size: int = 3

class World(Env):
    name = "{name}"
    config_type = WorldConfig
    note = Note("{name}")

OTHER = 3
"""
RUN = """
name = "t"
[model]
path = "policy"
[[env]]
id = "worlds/world.py:World"
"""


class Inner(EnvConfig):
    count: int = 1


class Settings(EnvConfig):
    size: int = 1
    share: float = 1.0
    on: bool = False
    pair: tuple[int, ...] = ()
    costs: dict[str, float] = {}
    choice: Literal[1, 2] = 1
    either: int | str = 1
    maybe: int | None = None
    more: dict[str, object] = {}
    anything: Any = None
    seed: int = 0
    world_seed: int | None = None
    chance_seed: int = -1
    limit: float = Field(default=1.0, allow_inf_nan=True)
    inner: Inner = Inner()
    workers: int = 1

    @field_validator("workers", mode="before")
    @classmethod
    def _or_auto(cls, given: object) -> object:
        return 8 if given == "auto" else given


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": True}, "config.size: true and false are no numbers, got true"),
        ({"size": "2"}, "config.size: it has to be a number, got the text '2'"),
        ({"share": "0.5"}, "config.share: it has to be a number, got the text '0.5'"),
        ({"share": False}, "config.share: true and false are no numbers, got false"),
        ({"share": math.nan}, "config.share: Input should be a finite number"),
        ({"on": "yes"}, "config.on: it has to be true or false, got 'yes'"),
        ({"on": 1}, "config.on: it has to be true or false, got 1"),
        ({"pair": [1, "2"]}, "config.pair.1: it has to be a number"),
        ({"costs": {"a": True}}, "config.costs.a: true and false are no numbers"),
        ({"choice": True}, "config.choice: true and false are no numbers"),
        ({"either": True}, "config.either: true and false are no numbers"),
        ({"maybe": "3"}, "config.maybe: it has to be a number"),
        ({"more": {"a": [1, math.inf]}}, "config.more.a.1: it has to be a finite number"),
        ({"anything": math.nan}, "config.anything: it has to be a finite number"),
        ({"seed": -1}, "config.seed: a seed is a whole number from 0 on, got -1"),
        ({"world_seed": -2}, "config.world_seed: a seed is a whole number from 0 on, got -2"),
        ({"inner": {"count": "1"}}, "config.inner.count: it has to be a number"),
        ({"workers": "4"}, "config.workers: it has to be a number"),
    ],
)
def test_settings_of_another_kind_are_refused_with_their_key(values, sentence):
    with pytest.raises(BadSettings) as caught:
        read_settings(Settings, values)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({"size": 2.0}, {"size": 2}),
        ({"share": 2}, {"share": 2.0}),
        ({"pair": [1, 2]}, {"pair": (1, 2)}),
        ({"either": "2"}, {"either": "2"}),
        ({"chance_seed": -1}, {"chance_seed": -1}),
        ({"limit": math.inf}, {"limit": math.inf}),
        ({"workers": "auto"}, {"workers": 8}),
        ({"more": {"a": "\ud800", "b": True}}, {"more": {"a": "\ud800", "b": True}}),
    ],
)
def test_settings_of_the_kind_that_is_asked_for_are_read(values, read):
    assert read_settings(Settings, values).model_dump(exclude_unset=True) == read


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write(tmp_path / "worlds", "one")


def write(folder: Path, name: str) -> Path:
    folder.mkdir()
    file = folder / "world.py"
    file.write_text(SOURCE.replace("{name}", name), encoding="utf-8")
    return file


def test_a_class_is_found_in_a_file_once(world):
    found = find_env(f"{world}:World")
    assert found.name == "one"
    assert find_env(f"{world}:World") is found


def test_a_relative_path_is_seen_from_the_working_directory(world, monkeypatch):
    monkeypatch.chdir(world.parent)
    assert find_env("world.py:World") is find_env(f"{world}:World")


def test_two_files_of_one_name_do_not_clash(world, tmp_path):
    other = find_env(f"{write(tmp_path / 'others', 'two')}:World")
    first = find_env(f"{world}:World")
    assert (first.name, other.name) == ("one", "two")
    assert first.__module__ != other.__module__


def test_what_a_file_defines_can_be_pickled(world):
    env_class = find_env(f"{world}:World")
    env = pickle.loads(pickle.dumps(env_class(env_class.config_type())))
    assert type(env) is env_class
    assert env.config.model_dump() == {"size": 3}
    assert pickle.loads(pickle.dumps(env_class)).note.text == "one"


def test_another_process_that_has_found_it_reads_its_pickles(world):
    """As an actor does: it gets the table, makes the environment, then gets objects of it."""
    find_env(f"{world}:World")
    script = (
        "import pickle, sys; from envs.registry import find_env; find_env(sys.argv[1]);"
        "print(pickle.loads(bytes.fromhex(sys.argv[2])).name)"
    )
    data = pickle.dumps(find_env(f"{world}:World")).hex()
    done = subprocess.run(
        [sys.executable, "-c", script, f"{world}:World", data],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        encoding="utf-8",
    )
    assert done.stdout == "one\n"


@pytest.mark.parametrize(
    ("source", "attribute", "sentence"),
    [
        (SOURCE, "Wrold", "world.py has no class 'Wrold'; its environments are World"),
        ("x = 1", "World", "world.py has no class 'World'; it defines no environment"),
        ("1 / 0", "World", "world.py cannot be imported: ZeroDivisionError"),
        ("def broken(:", "World", "world.py cannot be imported: SyntaxError"),
        (SOURCE, "OTHER", "is not a subclass of envs.env.Env"),
    ],
)
def test_a_file_that_offers_no_such_environment_is_one_sentence(
    tmp_path, source, attribute, sentence
):
    file = tmp_path / "world.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(UnknownEnv) as caught:
        find_env(f"{file}:{attribute}")
    assert sentence in str(caught.value)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UnknownEnv, match=f"there is no file {tmp_path}/nowhere.py"):
        find_env(f"{tmp_path}/nowhere.py:World")


def test_a_file_that_failed_can_be_mended(tmp_path):
    file = tmp_path / "world.py"
    file.write_text("1 / 0", encoding="utf-8")
    with pytest.raises(UnknownEnv):
        find_env(f"{file}:World")
    file.write_text(SOURCE.replace("{name}", "mended, and longer than before"), encoding="utf-8")
    assert find_env(f"{file}:World").name.startswith("mended")


def test_only_a_file_is_anchored():
    assert anchored("worlds/a.py:A", "/runs") == "/runs/worlds/a.py:A"
    assert anchored("/abs/a.py:A", "/runs") == "/abs/a.py:A"
    assert anchored("package.worlds:A", "/runs") == "package.worlds:A"
    assert anchored("calculator", "/runs") == "calculator"


def test_a_configurations_file_is_seen_from_its_own_folder(world, tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    monkeypatch.chdir("/")
    table = load_config(tmp_path / "run.toml").env[0]
    assert table.id == f"{world}:World"
    assert table.label == "world.py:World"
    assert table.make().name == "one"


def test_a_file_on_the_command_line_is_seen_from_the_working_directory(
    world, tmp_path, monkeypatch
):
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    monkeypatch.chdir(world.parent)
    table = load_config(tmp_path / "run.toml", ["--env.0.id", "world.py:World"]).env[0]
    assert table.id == f"{world}:World"
    assert EnvTable(id="world.py:World").id == table.id


def test_an_edited_file_makes_a_new_cold_start(world, tmp_path):
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    config = load_config(tmp_path / "run.toml")
    before = _key(config)
    assert _key(config) == before
    world.write_text(world.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert _key(config) != before


def test_a_class_without_a_name_is_refused(world):
    world.write_text(SOURCE.replace('name = "{name}"', "size = 3"), encoding="utf-8")
    with pytest.raises(UnknownEnv, match="has no name: write `name = "):
        find_playable(f"{world}:World")
