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

HOLDS = """
import sys
from pathlib import Path
from rl.nodes.node_folder import claim
claim(Path(sys.argv[1]))
print("claimed", flush=True)
input()
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

    def no_room(*_: object, **__: object) -> None:
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


def test_a_run_that_lives_in_another_process_keeps_its_folder_until_it_is_killed(tmp_path):
    folder = tmp_path / "dorado-1" / "a"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert owner.stdout is not None and owner.stdout.readline() == b"claimed\n"
        tidy(tmp_path)
        assert folder.is_dir()
    finally:
        owner.kill()
        owner.communicate(timeout=20)
    tidy(tmp_path)
    assert not folder.parent.exists()


def test_a_folder_that_two_processes_claim_stays_until_both_are_gone(tmp_path):
    """The run's process makes a folder; a store on the node claims it too, where the run grows."""
    folder = tmp_path / "dorado-1" / "a"
    claim(folder)
    killed_run(folder)
    tidy(tmp_path)
    assert (folder / "version-3.safetensors").exists()
    os.close(node_folder._held.pop(folder.with_name("a.owner")))
    tidy(tmp_path)
    assert not folder.exists()


def test_what_a_process_starts_does_not_keep_its_folder(tmp_path):
    folder = tmp_path / "dorado-1" / "a"
    claim(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        os.close(node_folder._held.pop(folder.with_name("a.owner")))
        tidy(tmp_path)
        assert not folder.exists()
        child.kill()


def test_runs_that_begin_together_leave_each_others_folders(tmp_path):
    """One takes the owner that another is just making for a dead one's: that one makes it again."""
    folders = [tmp_path / f"dorado-{n}" / "a" for n in range(4)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for folder in folders
    ]
    try:
        for one in running:
            while one.poll() is None and not one.stdout.readline():
                tidy(tmp_path)
        tidy(tmp_path)
        assert all(folder.is_dir() for folder in folders)
    finally:
        for one in running:
            one.kill()
            one.communicate(timeout=20)


def test_what_another_user_keeps_to_himself_is_passed_over(tmp_path, monkeypatch):
    theirs, left = tmp_path / "dorado-0" / "a", killed_run(tmp_path / "dorado-1" / "a")
    killed_run(theirs)
    opened = os.open

    def denied(path, *rest, **options):
        if "dorado-0" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", denied)
    claim(tmp_path / "dorado-2" / "a")
    assert theirs.is_dir() and not left.exists()


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(f"another-boot/1 {2**22} 1", id="of another machine"),
        pytest.param("flock another-boot", id="of another machine that locks"),
        pytest.param("? 1 1", id="of a machine that says nothing of itself"),
        pytest.param("flock ?", id="of a locking machine that says nothing of itself"),
        pytest.param("half", id="unreadable"),
        pytest.param("", id="empty"),
    ],
)
def test_where_nobody_can_know_whether_the_owner_lives_its_folder_stays(tmp_path, written):
    left = killed_run(tmp_path / "dorado-1" / "a")
    (left.parent / "a.owner").write_text(written, encoding="utf-8")
    claim(tmp_path / "dorado-2" / "a")
    assert left.is_dir()


def test_a_folder_without_an_owner_and_other_peoples_files_stay(tmp_path):
    others = [tmp_path / "dorado-1" / "a", tmp_path / "torch" / "a"]
    for folder in others:
        folder.mkdir(parents=True)
    (tmp_path / "dorado-x.safetensors").touch()
    (tmp_path / "torch" / "a.owner").write_text("x", encoding="utf-8")
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

    def vanished(owner: Path) -> int | None:
        raise FileNotFoundError(owner)

    monkeypatch.setattr(node_folder, "_lock_of_the_gone", vanished)
    claim(tmp_path / "dorado-2" / "a")
    assert (tmp_path / "dorado-2" / "a").is_dir()


def test_where_the_machine_says_nothing_of_itself_a_run_starts_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(node_folder, "_machine", lambda: node_folder.UNKNOWN)
    left = killed_run(tmp_path / "dorado-1" / "a")
    claim(tmp_path / "dorado-2" / "a")
    assert left.is_dir()
