"""The CPUs of this machine that a process may use; light, since settings are checked against it."""

import os


def usable_cpus() -> int:
    """Count the CPUs that this process may be scheduled on."""
    return len(os.sched_getaffinity(0))
