"""The levels of isolation, from strong to weak, and what each guarantees (docs/sandbox.md)."""

from typing import Literal

LevelName = Literal["bubblewrap", "landlock", "none"]
Guarantee = Literal[
    "time",  # wall clock and processor seconds
    "output",  # stdout and stderr are cut while they are read
    "environment",  # no variable of the host
    "memory",  # of each process, and of all together
    "processes",  # a fork bomb stops at the limit
    "disk",  # files together stay below the limit
    "survivors",  # nothing runs on after the run
    "network",  # no socket at all
    "files",  # no file of the host can be read or written, but for the system's programs and libraries
    "apart",  # two runs cannot read, signal or reach each other, nor the host's processes
    "hidden",  # the host's processes, and names of its files, cannot even be seen
    "disk_exact",  # the disk limit cannot be passed for a moment
]
# What "auto" may choose from, in this order. "none" is only ever chosen by name.
ISOLATING: tuple[LevelName, ...] = ("bubblewrap", "landlock")

_ALWAYS: frozenset[Guarantee] = frozenset(
    ("time", "output", "environment", "memory", "processes", "disk")
)
_CONFINED: frozenset[Guarantee] = _ALWAYS | frozenset[Guarantee](
    ("survivors", "network", "files", "apart")
)
_OWN_WORLD: frozenset[Guarantee] = _CONFINED | frozenset[Guarantee](("hidden", "disk_exact"))
GUARANTEES: dict[LevelName, frozenset[Guarantee]] = {
    "bubblewrap": _OWN_WORLD,
    "landlock": _CONFINED,
    "none": _ALWAYS,
}
LACKS: dict[LevelName, str] = {
    "bubblewrap": "",
    "landlock": (
        "a program can see that a path of the host or a process exists (not what is in it), and the "
        "limits on disk, on processes without root, and on memory in all are watched every 0.1 s, so "
        "they can be passed for a moment"
    ),
    "none": (
        "a program can read and write what its user may, reach the network, see and signal processes of "
        "its user, and leave processes behind; limits but for time, output, one process's memory and one "
        "file's size are watched every 0.1 s and a program can evade that"
    ),
}
