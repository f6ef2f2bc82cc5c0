"""`ApiError`: a request that is not answered, and why, in words and numbers that both APIs have.

The dialects write it as their API does; what a client's library makes of it is then its usual exception.
"""

from typing import Literal

from envs.text import encodable

Kind = Literal[
    "invalid",  # the request cannot be meant, or asks what no run does
    "too_long",  # its messages leave no room in the context
    "spent",  # the episode's turns are used up
    "secret",  # no secret, or not one of an episode in progress
    "model",  # there is no such model
    "path",  # there is no such address
    "too_large",  # more bytes than a request may have
    "too_many",  # more requests at once than an episode may have
    "slow",  # its body did not come in time
    "failed",  # the engine failed, and with it the episode
]
STATUS: dict[Kind, int] = {
    "invalid": 400,
    "too_long": 400,
    "spent": 400,
    "secret": 401,
    "model": 404,
    "path": 404,
    "too_large": 413,
    "too_many": 429,
    "slow": 408,
    "failed": 500,
}


# What a client wrote may be of any length; an error shows so much of it.
MOST_LETTERS = 1000


class ApiError(Exception):
    """One sentence for the client, of one kind; param: the part of the request that it is about, or ""."""

    def __init__(self, kind: Kind, sentence: str, param: str = "") -> None:
        super().__init__(encodable(sentence[:MOST_LETTERS]))
        self.kind: Kind = kind
        self.param = encodable(param[:MOST_LETTERS])

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.kind]
