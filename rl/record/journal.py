"""The journal of a run: changes beside the training, such as an environment at rest or a node that is gone.

Consumes sentences. Produces a line in the terminal and an event in events.jsonl for each.
"""

import time
from collections.abc import Sequence

from rl.record.progress import Progress
from rl.record.run_folder import RunFolder


class Journal:
    """Tells the user of changes, and keeps their sentences in the order in which they came."""

    def __init__(self, progress: Progress, folder: RunFolder) -> None:
        self.progress = progress
        self.folder = folder
        self.sentences: list[str] = []

    def say(self, what: str, sentence: str, trajectories: Sequence[str] = ()) -> None:
        """Tell of a change. what: the environment, node or actor that has changed. trajectories: ids that
        show it."""
        now = time.time()
        self.sentences.append(sentence)
        self.progress.note(sentence)
        details = {"trajectories": list(trajectories)} if trajectories else {}
        self.folder.event("supervision", what, now, now, what=sentence, **details)
