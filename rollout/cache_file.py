"""One request's KV cache as a file in shared memory, and how two processes agree that it is written.

The file has three names, of which one exists at a time: `asked` (an empty order that names the version the
engine is on), `part` (taken up, being written) and `path` (complete). Whoever finds it missing, damaged, of
another version, of another layout or of other tokens computes the prefix again. Left out on purpose: caches
between hosts, and engines of several processes.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

TOKEN_IDS = "token_ids"


@dataclass(frozen=True)
class CacheFile:
    """For example `CacheFile(Path("/dev/shm/dorado-1-ab/cache-5e"))`."""

    path: Path

    @property
    def asked(self) -> Path:
        """The order to write it."""
        return self.path.with_suffix(".asked")

    @property
    def part(self) -> Path:
        """Path of the file while it is being written."""
        return self.path.with_suffix(".part")

    def ask(self, version: int) -> None:
        """Order the cache of this request, which is `version`'s, should it end now."""
        with suppress(OSError):  # Without room for it the prefix is computed again.
            self.part.write_text(str(version), encoding="utf-8")
            os.replace(self.part, self.asked)

    def withdraw(self) -> None:
        """Nobody has taken the order up."""
        self.asked.unlink(missing_ok=True)

    def accept(self) -> int | None:
        """Take the order up; its version, or None where there is no order."""
        try:
            os.replace(self.asked, self.part)
            return int(self.part.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.drop()
            return None

    def drop(self) -> None:
        """It will not be written after all."""
        self.part.unlink(missing_ok=True)

    def expected(self) -> bool:
        """True if some process may still write the file."""
        return self.asked.exists() or self.part.exists()

    def write(
        self,
        token_ids: Sequence[int],
        layers: Mapping[str, torch.Tensor],
        version: int,
        layout: str,
    ) -> None:
        """Write blocks of every layer, which hold these tokens, and complete the file."""
        tensors = {name: blocks.contiguous() for name, blocks in layers.items()}
        tensors[TOKEN_IDS] = torch.tensor(token_ids, dtype=torch.int32)
        save_file(tensors, self.part, {"version": str(version), "layout": layout})
        os.replace(self.part, self.path)

    def matched(self, prompt_ids: Sequence[int], version: int, layout: str) -> int:
        """How many of the prompt's tokens need not be computed; its last one always has to be."""
        try:
            with safe_open(self.path, framework="pt") as file:
                if file.metadata() != {"version": str(version), "layout": layout}:
                    return 0
                held = file.get_tensor(TOKEN_IDS).tolist()
        except (OSError, SafetensorError):
            return 0
        usable = min(len(held), len(prompt_ids) - 1)
        return usable if held[:usable] == list(prompt_ids[:usable]) else 0

    def read(self, layers: Mapping[str, torch.Tensor], blocks: Sequence[int], first: int) -> None:
        """Copy the file's blocks from `first` on to these blocks of every layer. Raises where it cannot."""
        with safe_open(self.path, framework="pt") as file:
            for name, layer in layers.items():
                held = file.get_slice(name)[first : first + len(blocks)]
                layer[torch.tensor(blocks, device=layer.device)] = held.to(layer.device)
