"""Packages of the extra `interop`: imported where they are used, and what to install where one is missing.

with needed_by("environment 'openenv'"):
    import httpx
"""

from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def needed_by(user: str) -> Generator[None]:
    """Turn a missing package into a ValueError that says who needs it and what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{user} needs the package {error.name!r}: pip install 'dorado-rl[interop]'"
        ) from None
