"""The state of a reward model's training half-way: written now and then, and gone on from.

One file in the folder that is being made, replaced as a whole, with a key of everything that the training
depends on: a file of another key is left alone and nothing of it is used.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.optimizer import Optimizer

if TYPE_CHECKING:
    from trainer.reward_model import Preference, RewardTraining

FILE = "state.pt"


def training_key(start: Path, pairs: "Sequence[Preference]", c: "RewardTraining") -> str:
    """The same for trainings that make the same updates. start: the policy's folder."""
    found = hashlib.sha256(c.model_dump_json().encode())
    for file in sorted(start.glob("*.safetensors")):
        at = file.stat()
        found.update(f"{file.resolve()}/{at.st_size}/{at.st_mtime_ns}".encode())
    for one in pairs:
        found.update(repr((one.chosen, one.rejected, one.margin, one.weights)).encode())
    return found.hexdigest()


class TrainingState:
    """Keeps the state of one training in a folder."""

    def __init__(self, folder: Path, key: str, seconds: float) -> None:
        """seconds: between two writings."""
        self.file = folder / FILE
        self.key = key
        self.seconds = seconds
        self._written = time.monotonic()

    def load(self, model: nn.Module, optimizer: Optimizer) -> int:
        """Go on from what is kept, if it is of this training. Returns the number of updates made."""
        if not self.file.is_file():
            return 0
        try:
            kept: dict[str, Any] = torch.load(self.file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, OSError, UnpicklingError):  # cut off, garbled
            return 0
        if kept.get("key") != self.key:
            return 0
        model.load_state_dict(kept["model"])
        with torch.no_grad():
            for name, master in optimizer.masters.items():
                master.copy_(kept["masters"][name])
        optimizer.refresh()
        optimizer.adam.load_state_dict(kept["adam"])
        optimizer.updates = int(kept["updates"])
        return int(kept["made"])

    def keep(self, model: nn.Module, optimizer: Optimizer, made: int) -> None:
        """Write it down, not too often. made: updates that were tried. Raises OSError."""
        if time.monotonic() - self._written < self.seconds:
            return
        state = {
            "key": self.key,
            "made": made,
            "updates": optimizer.updates,
            "model": model.state_dict(),
            "masters": {name: one.detach() for name, one in optimizer.masters.items()},
            "adam": optimizer.adam.state_dict(),
        }
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.file)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Leave nothing behind: the training is done."""
        self.file.unlink(missing_ok=True)
