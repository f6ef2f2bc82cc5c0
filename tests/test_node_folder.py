"""A run's folder on a node: it is there while its owner lives, and the next run removes it after that."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.nodes import node_folder
from rl.nodes.node_folder import claim, tidy

CLAIMS = """
import os, sys
from pathlib import Path
from rl.nodes.node_folder import claim
claim(Path(sys.argv[1]))
(Path(sys.argv[1]) / "version-3.safetensors").write_bytes(b"weights")
os.kill(os.getpid(), 9)
"""


def killed_run(folder: Path) -> Path:
    """What a run that was killed has left."""
    subprocess.run([sys.executable, "-c", CLAIMS, str(folder)], check=False)
    assert (folder / "version-3.safetensors").exists()
    return folder


def test_what_a_killed_run_has_left_is_removed_by_the_next_one(tmp_path):
    left = killed_run(tmp_path / "dorado-1" / "a")
    mine = tmp_path / "dorado-2" / "a"
    claim(mine)
    assert not left.parent.exists() and mine.is_dir()


def test_a_run_has_that_room_before_it_starts_anything(tmp_path):
    left = killed_run(tmp_path / "dorado-1" / "a")
    mine = tmp_path / "dorado-2" / "a"
    claim(mine)
    tidy(tmp_path)
    assert not left.parent.exists() and mine.is_dir()
    tidy(tmp_path / "not there")


def test_what_is_left_goes_before_anything_is_written(tmp_path, monkeypatch):
    left = killed_run(tmp_path / "dorado-1" / "a")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(OSError, match="No space"):
        claim(tmp_path / "dorado-2" / "a")
    assert not left.exists()


def test_the_folder_of_a_process_that_lives_stays(tmp_path):
    first, second = tmp_path / "dorado-1" / "a", tmp_path / "dorado-2" / "a"
    claim(first)
    claim(second)
    claim(second)
    assert first.is_dir() and second.is_dir()


def test_of_a_run_over_nodes_that_share_a_file_system_only_the_part_that_is_gone_is_removed(
    tmp_path,
):
    left = killed_run(tmp_path / "dorado-1" / "a")
    there = tmp_path / "dorado-1" / "b"
    claim(there)
    assert sorted(path.name for path in left.parent.iterdir()) == ["b", "b.owner"]


def test_a_process_id_that_was_given_out_again_is_not_the_owner(tmp_path):
    left = killed_run(tmp_path / "dorado-1" / "a")
    owner = left.parent / "a.owner"
    machine, _, started = owner.read_text().split()
    owner.write_text(f"{machine} {os.getpid()} {int(started) - 100}")
    claim(tmp_path / "dorado-2" / "a")
    assert not left.exists()


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(f"another-boot/1 {2**22} 1", id="of another machine"),
        pytest.param("? 1 1", id="of a machine that says nothing of itself"),
        pytest.param("half", id="unreadable"),
        pytest.param("", id="empty"),
    ],
)
def test_where_nobody_can_know_whether_the_owner_lives_its_folder_stays(tmp_path, written):
    left = killed_run(tmp_path / "dorado-1" / "a")
    (left.parent / "a.owner").write_text(written)
    claim(tmp_path / "dorado-2" / "a")
    assert left.is_dir()


def test_a_folder_without_an_owner_and_other_peoples_files_stay(tmp_path):
    others = [tmp_path / "dorado-1" / "a", tmp_path / "torch" / "a"]
    for folder in others:
        folder.mkdir(parents=True)
    (tmp_path / "dorado-x.safetensors").touch()
    (tmp_path / "torch" / "a.owner").write_text("x")
    claim(tmp_path / "dorado-2" / "a")
    assert all(folder.is_dir() for folder in others)
    assert (tmp_path / "dorado-x.safetensors").exists()


def test_a_link_in_place_of_a_run_is_not_followed(tmp_path):
    """Anybody may put one into a folder that all share."""
    elsewhere = killed_run(tmp_path / "home" / "a")
    (tmp_path / "shm").mkdir()
    (tmp_path / "shm" / "dorado-1").symlink_to(tmp_path / "home")
    claim(tmp_path / "shm" / "dorado-2" / "a")
    assert elsewhere.is_dir()


def test_what_goes_wrong_with_an_earlier_run_does_not_keep_a_new_one_from_starting(
    tmp_path, monkeypatch
):
    killed_run(tmp_path / "dorado-1" / "a")

    def vanished(owner: Path) -> bool:
        raise FileNotFoundError(owner)

    monkeypatch.setattr(node_folder, "_is_gone", vanished)
    claim(tmp_path / "dorado-2" / "a")
    assert (tmp_path / "dorado-2" / "a").is_dir()


def test_where_the_machine_says_nothing_of_itself_a_run_starts_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(node_folder, "_machine", lambda: node_folder.UNKNOWN)
    left = killed_run(tmp_path / "dorado-1" / "a")
    claim(tmp_path / "dorado-2" / "a")
    assert left.is_dir()
