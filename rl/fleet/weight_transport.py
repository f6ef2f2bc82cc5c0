"""`WeightTransport`: brings a version's weights from the learner to the engines, keyed by version.

How they travel is the transport's own affair: files in memory (`rl.fleet.file_transport`) are one way.
Another one is a class with these four methods in a file of its own, and an entry in `TRANSPORTS` of
`rl.fleet.transports`.
"""

from typing import Protocol

from rollout.vllm_engine import LoadTimes


class WeightTransport(Protocol):
    """Moves weights. Each method raises what the actors' calls raise; deadlines are the caller's."""

    async def publish(self, version: int) -> int:
        """Make `version`, of which the learner holds a copy, available to engines. Returns bytes."""
        ...

    async def stage(self, engine: str, version: int) -> float:
        """Have an engine make a published version ready while it generates. Returns milliseconds.

        May be carried out twice: where an engine cannot be reached nobody knows what it has heard.
        """
        ...

    async def load(self, engine: str, version: int) -> LoadTimes:
        """Have an engine change to a published version. May be carried out twice, as `stage`."""
        ...

    def forget(self, version: int) -> None:
        """Release what a published version takes up: no engine will stage or load it again."""
        ...
