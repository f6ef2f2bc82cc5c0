"""Limits of a run in the sandbox: time, memory, processes, files."""

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one run, e.g. `Limits(wall_seconds=2, memory_bytes=128 * MIB)`.

    memory_bytes: address space of each process, and resident memory of all together. output_bytes: of
    stdout and of stderr each. disk_bytes: all files together; file_bytes: one file.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 * MIB
    processes: int = 32
    disk_bytes: int = 64 * MIB
    file_bytes: int = 16 * MIB
    output_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"sandbox limit {field.name} has to be above 0")
