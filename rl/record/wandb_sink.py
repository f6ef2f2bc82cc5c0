"""Weights & Biases beside the run folder: online with a key, else offline in the folder (`wandb sync`).

The run's id lies in wandb.id, so that a run that goes on is the same one there too. What W&B has of steps
that are undone it keeps: it takes a step once.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl.config import WandbConfig
from rl.record.run_folder import RunFolder

if TYPE_CHECKING:
    from wandb import Run


class WandbSink:
    """One W&B run; a sink that does nothing where it is switched off."""

    def __init__(self, config: WandbConfig, folder: RunFolder) -> None:
        self.run: Run | None = None
        if not config.enabled:
            return
        import wandb

        self.module = wandb
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False):
            mode = "offline"
        known = folder.path / "wandb.id"
        id = known.read_text().strip() if known.exists() else None
        self.run = wandb.init(
            id=id,
            resume="allow" if id else None,
            project=config.project,
            entity=config.entity,
            name=folder.config.name,
            mode=mode,  # pyright: ignore[reportArgumentType]
            dir=folder.path,
            config=folder.config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        known.write_text(f"{self.run.id}\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the keys of a line of metrics.jsonl."""
        if self.run is not None:
            self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and finish."""
        if self.run is not None:
            self.run.finish()
            # Ends its helper process in order, before the run ends what is left of its processes.
            self.module.teardown()
