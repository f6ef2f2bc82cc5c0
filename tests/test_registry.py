"""Environments in a file of their own: found by path, told apart by path, and the same in every process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from envs.registry import UnknownEnv, anchored, find_env, find_playable
from rl.cold_start import _key
from rl.config import EnvTable, load_config

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
