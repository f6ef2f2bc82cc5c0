"""Which levels work on this machine: each is tried once, with a program that tries to get out."""

import asyncio
import threading

from envs.sandbox.confinement import Work, lacks, python_at, run_confined
from envs.sandbox.level import LevelName
from envs.sandbox.limits import Limits

_PROGRAM = """
import os, socket
try:
    socket.create_connection(("127.0.0.1", 9), 1)
except PermissionError:
    pass
except OSError as error:
    assert error.errno == 101, error
try:
    os.listdir("/root"), open("/etc/passwd")
except OSError:
    print("ready")
"""
_RESTRICTED = (
    "; where user namespaces are restricted, allow them (sysctl "
    "kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for "
    "bwrap), or in a container allow the call unshare"
)
_lock = threading.Lock()
_found: dict[LevelName, str] = {}


async def obstacle(level: LevelName) -> str:
    """Why the level does not work here, in a sentence; "" where it works."""
    if level not in _found:
        await asyncio.to_thread(_try, level)
    return _found[level]


def _try(level: LevelName) -> None:
    with _lock:
        if level not in _found:
            _found[level] = lacks(level) or asyncio.run(_run(level))


async def _run(level: LevelName) -> str:
    program = "" if level == "none" else _PROGRAM
    argv = (python_at(level), "-I", "-S", "-c", program)
    result = await run_confined(level, Work(argv, {}, b"", (), Limits(), ()))
    if result.status == "ok" and (level == "none" or result.stdout == "ready\n"):
        return ""
    said = result.detail or result.stderr.strip() or "it does not isolate"
    refused = any(word in said for word in ("ermission", "permitted", "RTM_NEWADDR"))
    return said + (_RESTRICTED if refused and level != "landlock" else "")
