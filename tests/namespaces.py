"""Network namespaces joined by a cable: one machine as two, each with its own address and /dev/shm."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_nodes import Place

# Of two namespaces, each at its end of a veth pair; the second has one for a node that joins later.
ADDRESSES = (("10.213.7.1",), ("10.213.7.2", "10.213.7.3"))
CABLE = "cable"


class NotPermitted(Exception):
    """This machine does not let us make namespaces; the message says what it refused."""


@contextmanager
def two_places() -> Iterator[list[Place]]:
    """Two places that reach each other over the cable, and nothing else, and the second by another address.

    Each has a /dev/shm of its own. They end with the processes that hold them. Raises NotPermitted.
    """
    holders: list[subprocess.Popen[bytes]] = []
    try:
        for _ in ADDRESSES:
            holders.append(_holder())
        one, two = (str(holder.pid) for holder in holders)
        cable = ("ip", "link", "add", CABLE, "netns", one, "type", "veth")
        _do(*cable, "peer", "name", CABLE, "netns", two)
        for pid, addresses in zip((one, two), ADDRESSES, strict=True):
            inside = ("nsenter", "--target", pid, "--net", "--mount")
            _do(*inside, "mount", "-t", "tmpfs", "none", "/dev/shm")
            for address in addresses:
                _do(*inside, "ip", "address", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                _do(*inside, "ip", "link", "set", device, "up")
        # The way into a mount namespace leads to its root.
        there = ("sh", "-c", 'cd "$DORADO_TEST_FOLDER" && exec "$@"', "sh")
        yield [
            Place(address, ("nsenter", "--target", pid, "--net", "--mount", *there))
            for pid, addresses in zip((one, two), ADDRESSES, strict=True)
            for address in addresses
        ]
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def _holder() -> subprocess.Popen[bytes]:
    """A process in namespaces of its own, once it is there."""
    try:
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sleep", "infinity"], stderr=subprocess.PIPE
        )
    except OSError as error:
        raise NotPermitted(f"unshare: {error.strerror}") from None
    ours = os.readlink("/proc/self/ns/net")
    deadline = time.monotonic() + 30
    while holder.poll() is None and time.monotonic() < deadline:
        # First the namespaces, then the command: its name says that both are there.
        inside = os.readlink(f"/proc/{holder.pid}/ns/net") != ours
        if (
            inside
            and Path(f"/proc/{holder.pid}/comm").read_text(encoding="utf-8").strip() == "sleep"
        ):
            return holder
        time.sleep(0.02)
    holder.kill()
    _, said = holder.communicate()
    raise NotPermitted(f"unshare: {said.decode().strip()}")


def _do(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, encoding="utf-8")
    except OSError as error:
        raise NotPermitted(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise NotPermitted(f"{' '.join(command)}: {done.stderr.strip()}")
