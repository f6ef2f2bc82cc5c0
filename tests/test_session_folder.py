"""The session folder of a local run: for its user alone; what a killed run left goes with the next one."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
from dorado_command import ROOT

from rl.nodes.session_folder import (
    MARK,
    close_session,
    guard_token,
    note_shared_memory,
    open_session,
    remove_leftovers,
    shared_memory,
    user_folder,
)

# A run with a child that holds shared memory, and is killed without a chance to clean up.
KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
from rl.nodes.session_folder import note_shared_memory, open_session
folder = open_session(Path(sys.argv[1]))
(folder / "socket").write_text("")
child = (
    "from multiprocessing.shared_memory import SharedMemory as S; import sys, time;"
    "from multiprocessing import resource_tracker as t; one = S(create=True, size=4096);"
    "t.unregister(one._name, 'shared_memory'); print(one._name[1:], flush=True); time.sleep(60)"
)
run = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
print(folder.name, run.pid, run.stdout.readline().strip(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_run(parent: Path) -> tuple[str, psutil.Process, Path]:
    """A session whose run was killed: its name, the process that it left, and that one's shared memory."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(parent)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        # What it leaves behind holds the ends of its pipes.
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=60,
        encoding="utf-8",
    )
    name, pid, memory = done.stdout.split()
    return name, psutil.Process(int(pid)), Path("/dev/shm") / memory


def test_the_next_run_ends_and_removes_what_a_killed_one_left(tmp_path):
    name, process, memory = killed_run(tmp_path)
    assert (tmp_path / name / "socket").exists() and memory.exists()
    assert shared_memory([process]) == {str(memory)}
    folder = open_session(tmp_path)
    try:
        assert not memory.exists() and not (tmp_path / name).exists()
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        assert [path.name for path in tmp_path.glob("*.owner")] == [f"{folder.name}.owner"]
    finally:
        close_session(folder)


def test_a_run_that_lives_is_left_alone_and_one_that_has_ended_is_not(tmp_path):
    folder = open_session(tmp_path)
    note_shared_memory(folder, ["/dev/shm/psm_of_nobody", "/etc/passwd"])
    assert os.environ[MARK] == folder.name and folder.stat().st_mode & 0o777 == 0o700
    # Another process cleans up: this one's lock is its own.
    clean = "from rl.nodes.session_folder import *; from pathlib import Path; import sys;"
    act = [sys.executable, "-c", clean + "remove_leftovers(Path(sys.argv[1]))", str(tmp_path)]
    subprocess.run(act, cwd=ROOT, check=True, timeout=60)
    assert folder.is_dir()
    close_session(folder)
    assert MARK not in os.environ and folder.is_dir(), "to be looked at"
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [] and Path("/etc/passwd").exists()


def test_the_folder_of_the_user_s_sessions_is_the_user_s_alone():
    assert user_folder().stat().st_mode & 0o777 == 0o700


def test_nobody_else_reads_the_token_that_ray_made(tmp_path, monkeypatch):
    token = tmp_path / "auth_token"
    token.write_text("secret", encoding="utf-8")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    guard_token()
    assert token.stat().st_mode & 0o777 == 0o600
