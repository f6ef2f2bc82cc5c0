"""Token rows: sequences to imitate, some five bytes a token, made into samples where they are trained on.

In: token ids, and which of them carry loss. Out: a sequence of `TrainSample`, each made when it is asked for:
as samples, the rows of a large data set would take ten times the memory. No torch.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import overload

from trainer.sample import TrainSample


class TokenRows(Sequence[TrainSample]):
    """Rows by index, as samples of environment `env` without any advantage."""

    def __init__(self, env: str) -> None:
        self.env = env
        self._names: list[str] = []
        self._ids: list[array[int]] = []
        self._learn: list[bytes] = []

    def add(self, name: str, ids: Sequence[int], learn: Sequence[bool]) -> None:
        """Append a row. learn: True where the token carries loss, one entry per token."""
        self._names.append(name)
        self._ids.append(array("I", ids))
        self._learn.append(bytes(learn))

    @overload
    def __getitem__(self, index: int) -> TrainSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TrainSample]: ...
    def __getitem__(self, index: int | slice) -> TrainSample | Sequence[TrainSample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        ids = tuple(self._ids[index])
        zeros = (0.0,) * len(ids)
        return TrainSample(
            id=self._names[index],
            env=self.env,
            token_ids=ids,
            loss_mask=tuple(map(bool, self._learn[index])),
            rollout_logprobs=zeros,
            advantages=zeros,
            versions=(0,) * len(ids),
        )

    def __len__(self) -> int:
        return len(self._names)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(map(len, self._ids))

    @property
    def num_learnt(self) -> int:
        """Tokens that carry loss."""
        return sum(map(sum, self._learn))

    def digest(self) -> str:
        """A hash of every token and of its loss."""
        found = hashlib.sha256()
        for ids, learn in zip(self._ids, self._learn, strict=True):
            found.update(len(ids).to_bytes(8, "little"))
            found.update(ids.tobytes())
            found.update(learn)
        return found.hexdigest()
