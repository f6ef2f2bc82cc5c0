"""The text of token ids, by the tokenizer that a run's folder leads to.

In: a run folder with a tokenizer or a checkpoint, or settings that name a local one. Out: one text per id, or
None where there is no tokenizer. For the eyes only: nothing that is trained on is ever made from it. A large
tokenizer takes seconds to load, so call it beside the event loop; the last ones used are kept.
"""

import stat
import threading
import tomllib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from rl.dashboard.growing_lines import plain

_FILE = "tokenizer.json"
# A tokenizer of 200,000 tokens has about 20 MB, and takes ten times that in memory.
_MAX_BYTES = 64 * 2**20
_KEPT = 2
_loading = threading.Lock()


def token_texts(folder: Path, ids: Sequence[int]) -> list[str] | None:
    """One text per id; None where the run folder leads to no tokenizer that can be read."""
    found = _tokenizer_file(folder)
    if found is None:
        return None
    with _loading:
        texts = _Texts.of(*found)
        return None if texts is None else [texts.text(id) for id in ids]


def _tokenizer_file(run: Path) -> tuple[str, int] | None:
    """The run's own, else that of its newest checkpoint or of the model named; and when it was written."""
    found = [
        (int(folder.parent.name.removeprefix("step_")), folder / _FILE)
        for folder in run.glob("checkpoints/step_*/model")
        if folder.parent.name.removeprefix("step_").isdecimal()
    ]
    paths = [path for _, path in sorted(found, reverse=True)]
    for path in (run / _FILE, *paths, *_named(run)):
        try:
            state = path.stat()
        except OSError:  # such as a name that is longer than names can be
            continue
        if stat.S_ISREG(state.st_mode) and state.st_size <= _MAX_BYTES:
            return str(path), state.st_mtime_ns
    return None


def _named(run: Path) -> list[Path]:
    """Tokenizer file of the model that the settings name, if the model is a folder."""
    try:
        settings = tomllib.loads((run / "config.toml").read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return []
    model = settings.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return [Path(path) / _FILE] if isinstance(path, str) and "\0" not in path else []


class _Texts:
    """One tokenizer, and the texts that were asked for."""

    def __init__(self, path: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(path)
        self._known: dict[int, str] = {}

    @staticmethod
    @lru_cache(maxsize=_KEPT)
    def of(path: str, written: int) -> "_Texts | None":
        """The tokenizer of a file as it was written then; None where it is none."""
        try:
            return _Texts(path)
        except Exception:  # the only class that its library raises
            return None

    def text(self, id: int) -> str:
        """The text of one id; of a piece of a character its name in the vocabulary."""
        if id not in self._known:
            name = self._tokenizer.id_to_token(id)
            text = self._tokenizer.decode([id], skip_special_tokens=False)
            if name is None:
                text = f"<{id}>"
            elif not text or "\ufffd" in text:
                text = name
            self._known[id] = plain(text)
        return self._known[id]
