"""The reference policy of a KL: the start, a folder's, or the policy of every so many versions.

Holds its weights by name, in the dtype of the products, on each rank its part. That of an earlier version is
one of the weights that the learner keeps, and so a part of its checkpoints; the others are read again at a
start.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.policy import load_policy
from trainer.scorer import Scorer


class Reference:
    """Weights of the reference at any version."""

    def __init__(self, every: int, fixed: Mapping[str, Tensor]) -> None:
        """fixed: of a reference that stays; not read where `every` is above 0."""
        self.every, self.fixed = every, fixed

    def version(self, version: int) -> int | None:
        """The version that is the reference of `version`; None for a reference that stays."""
        return version // self.every * self.every if self.every else None

    def weights(
        self, version: int, past: Mapping[int, Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor] | None:
        """The reference's weights for a batch that `version` trains on; None where it is the reference
        itself.

        Raises ValueError where the weights of that version are not kept.
        """
        reference = self.version(version)
        if reference is None:
            return self.fixed
        if reference == version:
            return None
        if reference not in past:
            raise ValueError(
                f"version {reference}, the reference of version {version} (learner.loss.kl.every), is not in "
                "the checkpoint, which was written with other settings: begin at a version that it divides"
            )
        return past[reference]


def weights_of(folder: str | Path, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights of a folder's policy for a scorer that has `own`, in the dtypes and on the devices of
    these.

    Raises ValueError where it is of another architecture.
    """
    scorer = Scorer(load_policy(folder, torch.float32), 1.0)
    found = scorer.state_dict()
    for name, weight in own.items():
        if not name.startswith("critic.") and (
            name not in found or found[name].shape != weight.shape
        ):
            raise ValueError(
                f"learner.loss.kl.reference: the policy of {folder} is of another architecture than the one "
                f"that is trained, which has {name} of shape {tuple(weight.shape)}"
            )
    return {n: found[n].to(w.device, w.dtype) for n, w in own.items() if n in found}
