"""Escapes from the sandbox, tried at every level that works here; and the weakest level as the control.

A test of a refusal runs its program at level "none" too, where it has to succeed (`test_the_attempts_work…`):
so an attempt that could never work proves nothing here.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from envs.sandbox import probe, process
from envs.sandbox.confinement import python_at
from envs.sandbox.level import GUARANTEES, ISOLATING, LACKS, Guarantee, LevelName
from envs.sandbox.limits import MIB, Limits
from envs.sandbox.result import Result
from envs.sandbox.sandbox import Sandbox, SandboxUnavailable
from rl.config_file import ConfigError
from rl.env_table import EnvTable

pytestmark = pytest.mark.process

LEVELS: tuple[LevelName, ...] = (*ISOLATING, "none")
LONG = Limits(wall_seconds=60, cpu_seconds=60)


def levels(*guarantees: Guarantee):
    """One test per level that claims all of these."""
    claiming = [level for level in LEVELS if set(guarantees) <= GUARANTEES[level]]
    return pytest.mark.parametrize("level", claiming)


async def box(level: LevelName, limits: Limits = LONG) -> Sandbox:
    if reason := await probe.obstacle(level):
        pytest.skip(f"{level}: {reason}")
    return Sandbox(level=level, limits=limits)


async def run(level: LevelName, source: str, limits: Limits = LONG, **more) -> Result:
    result = await (await box(level, limits)).python(source, **more)
    assert result.level == level
    assert result.status != "infra", result
    return result


def running(mark: str) -> list[int]:
    """Processes of this machine that carry a mark on their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def host_directory():
    """A directory of the host that every user may enter and change."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="host-") as path:
        os.chmod(path, 0o777)
        yield Path(path)


def attempts(directory: Path, port: int, secret: str) -> dict[str, str]:
    """Programs that print `got it` where they reach what they should not."""
    unix = str(directory / "raylet")
    return {
        "tcp": f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('got it')",
        "unix": f"import socket\nsocket.socket(socket.AF_UNIX).connect({unix!r})\nprint('got it')",
        "abstract": (
            f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + {secret!r})\nprint('got it')"
        ),
        "datagram": (
            f"import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
            f"a.sendto(b'x', {str(directory / 'datagrams')!r})\nprint('got it')"
        ),
        "datagram, connected": (
            f"import socket\na, b = socket.socketpair(socket.AF_UNIX, 3)\n"
            f"a.connect('\\0' + {secret!r} + 'd')\na.send(b'x')\nprint('got it')"
        ),
        "read": f"if {secret!r} in open({str(directory / 'auth_token')!r}).read(): print('got it')",
        "write": f"open({str(directory / 'planted')!r}, 'w').write('x')\nprint('got it')",
        "replace": f"import os\nos.unlink({str(directory / 'victim')!r})\nprint('got it')",
        "mode": f"import os\nos.chmod({str(directory / 'mine')!r}, 0)\nprint('got it')",
        "list": f"import os\nif 'auth_token' in os.listdir({str(directory)!r}): print('got it')",
        "passwd": "if 'root:' in open('/etc/passwd').read(): print('got it')",
        "processes": "import os\nif sum(n.isdigit() for n in os.listdir('/proc')) > 4: print('got it')",
    }


NAMES = (
    "tcp",
    "unix",
    "abstract",
    "datagram",
    "datagram, connected",
    "read",
    "write",
    "replace",
    "mode",
    "list",
    "passwd",
    "processes",
)


@contextlib.contextmanager
def host(directory: Path):
    """A host with something to reach: two listening sockets as Ray has them, a token, files."""
    secret = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in (str(directory / "raylet"), "\0" + secret):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen()
        for address in (str(directory / "datagrams"), "\0" + secret + "d"):
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(address)
        for name in ("raylet", "datagrams"):
            os.chmod(directory / name, 0o777)
        (directory / "auth_token").write_text(secret, encoding="utf-8")
        (directory / "victim").write_text("here", encoding="utf-8")
        (directory / "mine").write_text("", encoding="utf-8")
        yield attempts(directory, tcp.getsockname()[1], secret)


@pytest.mark.parametrize("name", NAMES)
async def test_the_attempts_work_where_nothing_is_isolated(name, host_directory):
    if name == "mode" and os.getuid() == 0:
        pytest.skip("as root the program is another user, whom the file does not belong to")
    with host(host_directory) as programs:
        result = await run("none", programs[name])
    assert result.stdout == "got it\n", result


@levels("network", "files")
@pytest.mark.parametrize("name", NAMES)
async def test_what_belongs_to_the_host_is_out_of_reach(level, name, host_directory):
    with host(host_directory) as programs:
        result = await run(level, programs[name])
    assert "got it" not in result.stdout, result
    assert (host_directory / "victim").exists() and not (host_directory / "planted").exists()


@levels("environment")
async def test_no_variable_of_the_host_comes_in(level, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    source = """
import glob, os
print(sorted(os.environ))
for path in glob.glob('/proc/*/environ') if os.environ['HOME'] == '/tmp' else ():
    try:
        print(open(path).read())
    except OSError:
        pass
"""
    result = await run(level, source)
    assert result.status == "ok" and "HOME" in result.stdout, result
    assert "hunter2" not in result.stdout and "TOKEN" not in result.stdout


@levels("hidden")
async def test_the_hosts_processes_cannot_be_seen(level):
    pid = os.getpid()
    source = f"""
import os
print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit())[-1] < 20)
for number in ({pid}, {os.getppid()}):
    try:
        os.kill(number, 0)
        print('found', number)
    except OSError:
        pass
print(open('/proc/1/cmdline').read())
"""
    result = await run(level, source)
    assert result.stdout.startswith("True\n") and "found" not in result.stdout, result
    assert "pytest" not in result.stdout


@levels("apart")
async def test_the_hosts_processes_cannot_be_signalled_or_read(level):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    source = f"""
import os
for act in (lambda: os.kill({victim.pid}, 9), lambda: os.kill(-1, 9) or os.kill(os.getppid(), 9),
            lambda: print('got it', open('/proc/{victim.pid}/cmdline').read()),
            lambda: print('got it', os.readlink('/proc/{victim.pid}/exe'))):
    try:
        act()
    except OSError:
        pass
"""
    try:
        result = await run(level, source)
        assert "got it" not in result.stdout, result
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@levels("apart")
async def test_two_at_once_do_not_see_each_other(level, tmp_path):
    mark = uuid.uuid4().hex
    sandbox = await box(level)
    waits = "open('mine', 'w').write('x')\nimport time\ntime.sleep(600)"
    argv = [python_at(level), "-S", "-c", waits, mark]
    other = asyncio.create_task(sandbox.run(argv))
    try:
        await until(lambda: running(mark))
        source = f"""
import glob, os
print(os.listdir('.'))
for pattern in ('/tmp/*/mine', '/tmp/mine', '/dev/shm/mine'):
    for path in glob.glob(pattern):
        print('got it', path)
for name in glob.glob('/proc/[0-9]*/cmdline'):
    if {mark!r} in open(name).read():
        print('got it', name)
try:
    os.kill(-1, 9)
except OSError:
    pass
"""
        result = await sandbox.python(source)
        assert result.stdout.startswith("['main.py']") and "got it" not in result.stdout, result
        assert running(mark), "the neighbour was killed"
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


@levels("processes")
async def test_a_fork_bomb_stops_at_the_limit(level):
    source = """
import os, sys, time
made = 0
try:
    while made < 300:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
        print(made, flush=True)
except BlockingIOError:
    print('refused', flush=True)
time.sleep(0.5)
os._exit(0)
"""
    limits = Limits(wall_seconds=60, processes=12)
    result = await run(level, source, limits)
    if GUARANTEES[level] >= {"hidden"} or os.getuid() == 0:
        assert result.stdout.splitlines()[-1] == "refused", result
        assert len(result.stdout.splitlines()) <= 12
    else:
        assert (result.status, result.detail) == ("killed", "more than 12 processes")


@levels("memory")
async def test_a_process_cannot_have_more_memory_than_its_limit(level):
    result = await run(level, "x = bytearray(200 * 2**20)", Limits(memory_bytes=100 * MIB))
    assert result.status == "memory", result
    result = await run(level, "x = bytearray(20 * 2**20)", Limits(memory_bytes=100 * MIB))
    assert result.status == "ok", result


@levels("memory")
async def test_many_processes_cannot_have_more_memory_together(level):
    source = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        x = b'x' * (60 * 2**20)
        time.sleep(600)
time.sleep(600)
"""
    result = await run(level, source, Limits(wall_seconds=60, memory_bytes=128 * MIB))
    assert (result.status, "together" in result.detail) == ("memory", True), result


FLOOD = """
import os, sys, time
total = 0
block = b'x' * 2**18
for number in range(400):
    for place in ('.', '/tmp', '/dev/shm', '/'):
        try:
            name = f'{place}/flood{number}{len(place)}'
            with open(name, 'wb') as file:
                total += os.write(file.fileno(), block)
        except OSError:
            pass
print(total)
"""


@levels("disk_exact")
async def test_files_together_stay_below_the_limit(level):
    limits = Limits(wall_seconds=60, disk_bytes=8 * MIB)
    result = await run(level, FLOOD, limits)
    assert result.status == "ok", result
    assert 2 * MIB < int(result.stdout) <= 8 * MIB


@pytest.mark.parametrize("level", ["landlock"])
async def test_files_together_above_the_limit_end_a_run_whose_disk_is_watched(level):
    source = FLOOD.replace("print(total)", "time.sleep(600)")
    before = set(os.listdir("/tmp"))
    result = await run(level, source, Limits(wall_seconds=60, disk_bytes=8 * MIB))
    assert result.status == "killed" and "files together" in result.detail, result
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("flood")}
    assert left == set()


# Files without a name: `held` is what keeps each of them.
NAMELESS = """
import mmap, os, subprocess, time
kept = []
for n in range(40):
    fd = os.open(f'f{n}', os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, bytes(2**20))
    os.unlink(f'f{n}')
    HELD
print('got it', flush=True)
time.sleep(600)
"""
HELD = {
    "open": "pass",
    "mapped": "kept.append(mmap.mmap(fd, 4096)); os.close(fd)",
    "in a child": "subprocess.Popen(['/bin/sleep', '600'], stdin=fd); os.close(fd)",
    "never named": "os.close(fd); os.write(os.open('.', os.O_TMPFILE | os.O_RDWR), bytes(2**20))",
    "of a first thread that ended": (
        "import threading, ctypes\n"
        "    if n == 39:\n"
        "        threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "        ctypes.CDLL(None).syscall(60, 0)"
    ),
    "in a folder that is gone": (
        "os.makedirs('d', exist_ok=True); fd = os.open('d/x', os.O_RDWR | os.O_CREAT)\n"
        "    os.write(fd, bytes(2**20)); os.unlink('d/x'); os.rmdir('d')"
    ),
}


@pytest.mark.parametrize("held", HELD)
async def test_files_without_a_name_count_as_well(held):
    source = NAMELESS.replace("HELD", HELD[held])
    limits = Limits(wall_seconds=60, disk_bytes=16 * MIB, memory_bytes=2**30, processes=64)
    result = await run("landlock", source, limits)
    assert result.status == "killed" and "files together" in result.detail, result


async def test_files_that_are_gone_for_good_do_not_count():
    source = NAMELESS.replace("HELD", "os.close(fd)").replace("sleep(600)", "sleep(0.5)")
    result = await run("landlock", source, Limits(wall_seconds=60, disk_bytes=16 * MIB))
    assert (result.status, result.stdout) == ("ok", "got it\n"), result


@levels("disk")
async def test_one_file_stays_below_its_limit(level):
    source = "f = open('big', 'wb', 0)\nwhile True: f.write(b'x' * 65536)"
    result = await run(level, source, Limits(wall_seconds=60, file_bytes=MIB))
    assert result.status == "error" and "File too large" in result.stderr, result


@levels("disk")
async def test_a_tree_that_is_too_deep_to_delete_by_name_is_gone_afterwards(
    level, host_directory, monkeypatch
):
    source = """
import os
os.makedirs('closed/inner'); os.chmod('closed/inner', 0) if os.environ['HOME'] == '/tmp' else None
for _ in range(2000):
    os.mkdir('d' * 20); os.chdir('d' * 20)
"""
    await probe.obstacle(level)
    # A place of its own: in /tmp there are those of whoever else runs a sandbox on this machine.
    monkeypatch.setattr(tempfile, "tempdir", str(host_directory))
    await run(level, source)
    assert os.listdir(host_directory) == []


@levels("output")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_flood_of_output_is_cut_and_ended(level, stream):
    source = f"import sys\nwhile True: sys.{stream}.write('x' * 4096)"
    result = await run(level, source, Limits(wall_seconds=60, output_bytes=10_000))
    assert result.status == "output"
    assert len(getattr(result, stream)) == 10_000


@levels("time")
async def test_neither_the_clock_nor_the_processor_can_be_had_for_longer(level):
    result = await run(level, "import time\ntime.sleep(600)", Limits(wall_seconds=1))
    assert (result.status, result.detail) == ("timeout", "no end within 1 s"), result
    result = await run(level, "while True: pass", Limits(wall_seconds=60, cpu_seconds=1))
    assert (result.status, result.detail) == ("timeout", "processor seconds used up"), result


DAEMON = """
import os, sys, time
print('started', flush=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 50)
        time.sleep(600)
    os._exit(0)
"""


@levels("survivors")
@pytest.mark.parametrize("end", ["os._exit(0)", "time.sleep(600)"], ids=["ends", "timeout"])
async def test_nothing_outlives_a_run(level, end):
    mark = uuid.uuid4().hex
    limits = Limits(wall_seconds=3 if "600" in end else 60)
    argv = [python_at(level), "-S", "-c", DAEMON + end, mark]
    result = await (await box(level, limits)).run(argv)
    assert result.stdout == "started\n", result
    assert running(mark) == []


@levels("survivors")
async def test_a_cancelled_run_leaves_nothing(level):
    mark = uuid.uuid4().hex
    argv = [python_at(level), "-S", "-c", DAEMON + "time.sleep(600)", mark]
    act = asyncio.create_task((await box(level)).run(argv))
    await until(lambda: running(mark))
    act.cancel()
    with pytest.raises(asyncio.CancelledError):
        await act
    assert running(mark) == []


@levels("survivors")
@pytest.mark.slow
async def test_a_run_that_is_cancelled_while_it_begins_leaves_nothing(level):
    """At every stage of building its world, in which bubblewrap has not yet tied it to its own end."""
    sandbox, mark = await box(level), uuid.uuid4().hex

    async def cut_off(seconds: float) -> None:
        act = asyncio.create_task(sandbox.run([python_at(level), "-S", "-c", "", mark]))
        await asyncio.sleep(seconds)
        act.cancel()
        await asyncio.wait({act})

    for step in range(100):
        await asyncio.gather(*(cut_off(((4 * step + n) / 1000) ** 2) for n in range(4)))
    assert running(mark) == []


@levels("survivors")
async def test_a_run_that_is_cancelled_again_while_it_ends_still_leaves_nothing(level, monkeypatch):
    mark = uuid.uuid4().hex
    ending, go_on, exited = asyncio.Event(), asyncio.Event(), process._exit

    async def held_up(proc):
        ending.set()
        await go_on.wait()
        await exited(proc)

    monkeypatch.setattr(process, "_exit", held_up)
    argv = [python_at(level), "-S", "-c", DAEMON + "time.sleep(600)", mark]
    act = asyncio.create_task((await box(level)).run(argv))
    await until(lambda: running(mark))
    act.cancel()
    await asyncio.wait_for(ending.wait(), 60)
    act.cancel()
    await asyncio.wait({act}, timeout=0.05)
    early = act.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await act
    assert not early, "it returned before the process was gone"
    assert running(mark) == []


@levels("survivors")
async def test_a_killed_launcher_takes_its_sandbox_along(level):
    await box(level)
    mark = uuid.uuid4().hex
    argv = [python_at(level), "-S", "-c", DAEMON + "time.sleep(600)", mark]
    source = f"""
import asyncio
from envs.sandbox.sandbox import Sandbox
asyncio.run(Sandbox(level={level!r}).run({argv!r}))
"""
    root = Path(__file__).parent.parent
    launcher = subprocess.Popen([sys.executable, "-c", source], cwd=root)
    try:
        inside = lambda: [pid for pid in running(mark) if pid != launcher.pid]  # noqa: E731
        await until(lambda: len(inside()) >= 2)
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    await until(lambda: not running(mark))


CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
numbers = {numbers!r}
for name, arguments in numbers.items():
    done = libc.syscall(*[ctypes.c_long(a) for a in arguments])
    print(name, 'worked' if done >= 0 else os.strerror(ctypes.get_errno()))
print('no_new_privs', libc.prctl(39, 0, 0, 0, 0))
"""


@levels("apart")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_calls_that_open_doors_are_refused(level):
    numbers = {
        "ptrace": (101, 0, 0, 0, 0),
        "unshare user": (272, 0x10000000),
        "clone into a user namespace": (56, 0x10000000 | 17, 0, 0, 0, 0),
        "setns": (308, 0, 0),
        "io_uring": (425, 1, 0),
        "bpf": (321, 0, 0, 0),
        "keyctl": (250, 0, 0),
        "shared memory": (29, 1, 4096, 0o1600),
        "memfd": (319, 0, 0),
        "socket": (41, 2, 1, 0),
        "a pair of datagrams": (53, 1, 2, 0, 0),
        "a pair of datagrams that does not wait": (53, 1, 2 | 0o4000, 0, 0),
        "a raw pair, which is one of datagrams": (53, 1, 3, 0, 0),
        "a pair of another family": (53, 30, 1, 0, 0),
        "connect": (42, 0, 0, 0),
        "bind": (49, 0, 0, 0),
    }
    if level == "landlock":
        numbers |= {
            "hiding": (157, 4, 0, 0, 0, 0),
            "files of its own": (436, 3, 3, 2),
            "a thread with files of its own": (56, 0x10000 | 0x800 | 0x100, 0, 0, 0, 0),
            "a file through a socket": (46, 0, 0, 0),
        }
    result = await run(level, CALLS.format(numbers=numbers))
    lines = result.stdout.splitlines()
    assert lines.pop() == "no_new_privs 1", result
    assert lines == [f"{name} Operation not permitted" for name in numbers]


@levels("files")
async def test_only_the_three_standard_streams_are_open(level):
    source = (
        "import os\nfor n in range(3, 256):\n try: os.fstat(n); print(n)\n except OSError: pass"
    )
    assert (await run(level, source)).stdout == ""


@levels("files")
async def test_the_systems_files_cannot_be_changed(level):
    source = """
import os
for place in ('/usr/planted', '/usr/bin/planted', '/etc/planted', '/dev/planted', '/planted'):
    try:
        open(place, 'w')
        print('got it', place)
    except OSError:
        pass
"""
    assert (await run(level, source)).stdout == ""


@pytest.mark.parametrize("level", LEVELS)
async def test_files_and_input_go_in_and_files_come_out(level):
    source = """
import os, sys
text = sys.stdin.read() + open('data/in.txt').read()
open('out.bin', 'wb').write(text.encode()[::-1])
os.symlink('/etc/hostname', 'link'); os.mkfifo('pipe')
"""
    files = {"data/in.txt": "déf"}
    result = await run(level, source, files=files, stdin="abc", keep=["out.bin", "none", "pipe"])
    assert result.status == "ok", result
    assert result.files == {"out.bin": "abcdéf".encode()[::-1]}


NAMES_OF_FILES = {
    "too long": {"n" * 300: "x"},
    "too long, deep down": {f"a/{'é' * 200}/b": "x"},
    "too many folders": {"a/" * 3000 + "b": "x"},
    "no text": {"\ud800": "x"},
    "a folder": {"a/": "x"},
    "the folder itself": {".": "x"},
    "a file as a folder": {"a": "x", "a/b": "x"},
    "the program as a folder": {"main.py/a": "x"},
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("names", NAMES_OF_FILES)
async def test_a_name_that_no_file_can_have_is_the_programs_own_error(level, names):
    result = await run(level, "print('began')", files=NAMES_OF_FILES[names])
    assert (result.status, result.returncode, result.stdout) == ("error", 126, ""), result
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 1000


@pytest.mark.parametrize("level", LEVELS)
async def test_odd_but_possible_names_go_in_and_come_out(level):
    names = ["n" * 255, "\udcff", "new\nline", "-", "--", "a//b", "d/" * 400 + "x", " ", "$(id)"]
    names += [f"many/{n}" for n in range(600)]
    source = "import glob; print(len(glob.glob('many/*')))"
    result = await run(level, source, files=dict.fromkeys(names, "x"), keep=names[:9])
    assert (result.status, result.stdout) == ("ok", "600\n"), result
    assert result.files == dict.fromkeys(names[:9], b"x")


@pytest.mark.parametrize("level", LEVELS)
async def test_a_command_or_a_name_to_keep_that_cannot_be_is_the_programs_own_error(level):
    sandbox = await box(level)
    for argv in (["/bin/echo", "x" * 200_000], ["/bin/echo", "\ud800"], ["/bin/" + "n" * 300]):
        result = await sandbox.run(argv)
        assert result.status == "error" and result.returncode in (126, 127), result
    keep = ["n" * 300, "\ud800", "a\0b", "/proc/self/mem", "a/" * 3000, "", ".", "ok"]
    source = "import os; open('ok', 'w').write('x'); os.mkfifo('pipe')"
    result = await run(level, source, keep=[*keep, "pipe"])
    assert (result.status, result.files) == ("ok", {"ok": b"x"}), result
    result = await sandbox.python("", keep=["n" * 200] * 2000)
    assert result.status == "error" and "Argument list too long" in result.stderr, result


@pytest.mark.parametrize("level", LEVELS)
async def test_how_a_program_ends_is_told(level):
    assert (await run(level, "")).status == "ok"
    result = await run(level, "raise SystemExit(7)")
    assert (result.status, result.returncode) == ("error", 7)
    result = await run(level, "import os\nos.abort()")
    assert (result.status, result.returncode) in {("killed", 134), ("killed", 139)}
    missing = await (await box(level)).run(["/no/such/program"])
    assert missing.status == "error" and missing.returncode in (1, 126, 127), missing


@pytest.mark.parametrize("level", ISOLATING)
async def test_a_sandbox_that_is_killed_from_outside_says_nothing_about_the_program(level):
    mark = uuid.uuid4().hex
    argv = [python_at(level), "-S", "-c", "import time; time.sleep(600)", mark]
    before = set(children())
    act = asyncio.create_task((await box(level)).run(argv))
    # The program itself, and not only what is on its way to it.
    await until(lambda: any(name_of(pid) == argv[0] for pid in running(mark)))
    for pid in set(children()) - before:
        os.kill(pid, signal.SIGKILL)
    result = await act
    assert (result.status, result.returncode) == ("infra", -1), result


def name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    return ""


def children() -> list[int]:
    table = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        encoding="utf-8",
    ).stdout
    return [int(pid) for pid in table.split() if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
async def test_a_file_outside_of_the_directory_is_refused(name):
    with pytest.raises(ValueError, match="has to be a path below the working directory"):
        await Sandbox(level="none").python("", files={name: ""})


async def test_without_bubblewrap_the_next_level_is_used_and_the_sentence_says_how_to_get_it(
    monkeypatch, caplog
):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(probe, "_found", {"landlock": ""})
    monkeypatch.setattr("envs.sandbox.sandbox._warned", set())
    assert await Sandbox().level() == "landlock"
    assert "apt-get install bubblewrap" in caplog.text and "landlock" in caplog.text
    with pytest.raises(SandboxUnavailable, match=r"'bubblewrap'.*apt-get install bubblewrap"):
        await Sandbox(level="bubblewrap").level()


async def test_where_bubblewrap_is_forbidden_landlock_is_used_and_what_it_lacks_is_said(
    monkeypatch, caplog
):
    found = {"bubblewrap": "forbidden here", "landlock": ""}
    monkeypatch.setattr(probe, "_found", found)
    monkeypatch.setattr("envs.sandbox.sandbox._warned", set())
    assert await Sandbox().level() == "landlock"
    assert LACKS["landlock"] in caplog.text and "forbidden here" in caplog.text


async def test_no_isolation_is_never_chosen_and_warns_where_it_was_asked_for(monkeypatch, caplog):
    found: dict[LevelName, str] = dict.fromkeys(ISOLATING, "forbidden") | {"none": ""}
    monkeypatch.setattr(probe, "_found", found)
    monkeypatch.setattr("envs.sandbox.sandbox._warned", set())
    with pytest.raises(SandboxUnavailable, match="landlock: forbidden"):
        await Sandbox().level()
    assert await Sandbox(level="none").level() == "none"
    assert "leave processes behind" in caplog.text


def test_the_level_that_is_gone_is_refused_with_what_to_use_instead():
    sentence = "'namespaces' no longer exists: use 'bubblewrap', which works wherever it worked"
    with pytest.raises(ValueError, match=sentence):
        Sandbox(level="namespaces")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"config.sandbox.*{sentence}"):
        EnvTable(id="python_code", config={"sandbox": "namespaces"}).make()


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="processes has to be above 0"):
        Limits(processes=0)


async def test_many_at_once_all_end_well():
    sandbox = Sandbox(limits=LONG)
    try:
        await sandbox.level()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    began = time.monotonic()
    results = await asyncio.gather(*(sandbox.python(f"print({n})") for n in range(24)))
    assert [r.stdout for r in results] == [f"{n}\n" for n in range(24)], time.monotonic() - began
