"""CPU seconds of a run's processes over time, by what each process is."""

import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict

import psutil

SAMPLE_SECONDS = 0.5
# What stands in a process's command line, and which part of the run it is; the first match counts. Ray calls
# an actor's process `ray::engine-0:EngineActor.generate`, say.
_KINDS = (
    ("VLLM::EngineCore", "engine core"),
    ("VLLM::", "engine worker"),  # where a worker is a process of its own
    ("EngineActor", "engine actor"),
    ("LearnerActor", "learner"),
    ("ControllerActor", "controller"),
    ("EnvHost", "host"),
    ("ray::", "Ray"),
    ("raylet", "Ray"),
    ("gcs_server", "Ray"),
    ("/ray/", "Ray"),
)
Track = list[tuple[float, float]]


def kind_of(command: str, *, root: bool) -> str:
    """Name the process of this command line: a part of the run, or "other"."""
    if root:
        return "run"
    return next((kind for mark, kind in _KINDS if mark in command), "other")


class CpuSeconds:
    """Samples the CPU seconds of a process and of all that it started, until it is stopped."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        # Of each process: its kind, and (unix time, CPU seconds so far) at each look.
        self.kinds: dict[tuple[int, float], str] = {}
        self.tracks: dict[tuple[int, float], Track] = defaultdict(list)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self.ended.set()
        self.thread.join()

    def between(self, start: float, end: float) -> dict[str, float]:
        """CPU seconds of each kind of process between two unix times."""
        sums: dict[str, float] = defaultdict(float)
        for key, track in self.tracks.items():
            sums[self.kinds[key]] += _at(track, end) - _at(track, start)
        return dict(sums)

    def within(self, kind: str, spans: list[tuple[float, float]]) -> float:
        """CPU seconds of one kind of process inside these spans of unix time."""
        tracks = [track for key, track in self.tracks.items() if self.kinds[key] == kind]
        return sum(_at(track, end) - _at(track, start) for track in tracks for start, end in spans)

    def _sample(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            try:
                processes = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in processes:
                try:
                    self._look(process)
                except psutil.Error:
                    continue

    def _look(self, process: psutil.Process) -> None:
        key = (process.pid, process.create_time())
        # A process takes its name some time after it has begun.
        if self.kinds.get(key, "other") in ("other", "Ray"):
            command = " ".join(process.cmdline()) or process.name()
            self.kinds[key] = kind_of(command, root=process.pid == self.root.pid)
        times = process.cpu_times()
        self.tracks[key].append((time.time(), times.user + times.system))


def _at(track: Track, when: float) -> float:
    """CPU seconds at a unix time, between two looks in proportion."""
    index = bisect_left(track, (when, 0.0))
    if index == len(track):
        return track[-1][1]
    (after, used) = track[index]
    if index == 0:  # the first look: what it had used may be older than the time that is asked for
        return 0.0 if when < after - SAMPLE_SECONDS else used
    before, less = track[index - 1]
    return less + (used - less) * (when - before) / (after - before)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
