"""A disk without room: what is recognised as such, what the user reads, and what a resumed run needs."""

import errno
import sqlite3
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from rl import launch
from rl.config import InitConfig, ModelConfig, RunConfig
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.nodes.process import is_disk_full
from rl.record.run_folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="demo",
        runs_dir=str(tmp_path / "runs"),
        model=ModelConfig(init=InitConfig()),
        env=(EnvTable(id="calculator"),),
    )


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_known_wherever_it_was_met(tmp_path):
    with pytest.raises(OSError) as met, open("/dev/full", "w", encoding="utf-8") as file:
        file.write("x")
    assert is_disk_full(met.value)
    assert is_disk_full(
        RayTaskError("Controller.play", "a traceback", full()).as_instanceof_cause()
    )
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not is_disk_full(RuntimeError("No space left on device"))


def test_a_full_disk_is_known_from_the_index_too(tmp_path):
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("create table t (x)")
        pages = index.execute("pragma page_count").fetchone()[0]
        index.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(sqlite3.OperationalError) as met:
            index.execute("insert into t values (?)", ["x" * 100_000])
        assert is_disk_full(met.value)
        with pytest.raises(sqlite3.OperationalError) as met:
            index.execute("select * from nothing")
        assert not is_disk_full(met.value)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_run_on_a_full_disk_ends_with_a_sentence(config, monkeypatch, capsys, checkpoint):
    folder = Path(config.folder)

    def train(*_: object) -> int:
        if checkpoint:
            (folder / "checkpoints" / "step_8").mkdir(parents=True)
        raise full()

    monkeypatch.setattr(launch, "_train", train)
    monkeypatch.setattr(launch, "latest", lambda path, note: next(path.glob("step_*"), None))
    assert launch.train(config) == launch.FAILED
    said = " ".join(capsys.readouterr().out.split())
    on = f"; --resume {folder} goes on after step_8" if checkpoint else ""
    assert said.endswith(
        f"error: [Errno 28] No space left on device: the disk of {folder} is full, or its quota{on}"
    )


def test_the_disk_that_is_full_is_the_one_that_is_named(config, monkeypatch, capsys):
    def train(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/dev/shm/dorado-1/a.partial")

    monkeypatch.setattr(launch, "_train", train)
    assert launch.train(config) == launch.FAILED
    said = " ".join(capsys.readouterr().out.split())
    assert "the disk of /dev/shm/dorado-1/a.partial is full, or its quota" in said


def test_a_run_that_cannot_even_begin_its_folder_says_so(config, monkeypatch):
    def no_folder(*_: object, **__: object) -> RunFolder:
        raise full()

    monkeypatch.setattr(launch, "RunFolder", no_folder)
    with pytest.raises(ConfigError, match=r"^runs_dir: the disk of .*demo is full"):
        launch.train(config)


def test_another_error_of_a_file_is_raised_as_it_is(config, monkeypatch):
    def train(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    monkeypatch.setattr(launch, "_train", train)
    with pytest.raises(FileNotFoundError):
        launch.train(config)


def test_a_run_folder_on_a_full_disk_can_be_closed(config):
    folder = RunFolder(config)
    folder._metrics.close()
    folder._metrics = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        folder.metrics(1, {"a": 1.0})
    folder.close()
    assert folder._index is not None
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        folder._index.execute("select 1")
