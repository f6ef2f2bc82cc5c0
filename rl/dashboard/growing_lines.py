"""A JSONL file that another process appends to, read piece by piece.

In: a file that may not be there yet, may end in half a line, may hold lines that are no record of their kind,
and may be replaced by another. Out: the records that are new since the last call. What cannot be read is
counted, never raised: a page over a run has to survive whatever a run leaves behind.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Object = dict[str, object]

# Bytes read in one call: a long history comes in several, and a line beyond it is given up.
CHUNK = 32 * 2**20
MAX_LINE = 16 * 2**20


class GrowingLines(Generic[T]):
    """Reads one file from where the last call stopped.

    decode: makes a record of a line, or None of one that is none. broken: lines that were complete and none.
    A line counts once its newline is there; until then it may still be written.
    """

    def __init__(self, path: Path, decode: Callable[[bytes], T | None]) -> None:
        self.path = path
        self._decode = decode
        self._begin(None)

    def read(self) -> tuple[list[T], bool]:
        """Returns the new records, and True if the file was begun anew: then what came before is void."""
        records: list[T] = []
        anew = False
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                identity = (state.st_dev, state.st_ino)
                anew = self._identity is not None and (
                    identity != self._identity or state.st_size < self._offset
                )
                if anew or self._identity is None:
                    self._begin(identity)
                file.seek(self._offset)
                while block := file.read(CHUNK):
                    self._offset += len(block)
                    self._take(block, records)
        except OSError:
            # A folder that is being moved or is not there yet; what was read before stays valid.
            return records, anew
        return records, anew

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._offset, self._rest = identity, 0, b""
        self._overlong, self.broken = False, 0

    def _take(self, block: bytes, records: list[T]) -> None:
        *whole, self._rest = (self._rest + block).split(b"\n")
        for line in whole:
            if self._overlong:  # its beginning was given up already
                self._overlong = False
                continue
            record = self._decode(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                self.broken += 1
        if len(self._rest) > MAX_LINE:
            self.broken += not self._overlong
            self._overlong, self._rest = True, b""


def parse(line: bytes) -> Object | None:
    """The JSON object of a line, its text fit for a page; None where it is none."""
    try:
        value = json.loads(line.decode(errors="replace"))
        if not isinstance(value, dict):
            return None
        return plain(value) if rb"\u" in line else value
    except (ValueError, RecursionError):
        return None


def lines_of(kind: TypeAdapter[T]) -> Callable[[bytes], T | None]:
    """Returns what decodes lines of this kind. Keys that the kind does not have are left alone."""

    def decode(line: bytes) -> T | None:
        try:
            return kind.validate_json(line)
        except ValidationError:
            pass
        # Bytes that are no UTF-8 and half surrogates are refused above; a page shows them replaced.
        record = parse(line)
        try:
            return None if record is None else kind.validate_python(record)
        except ValidationError:
            return None

    return decode


@overload
def plain(value: str) -> str: ...
@overload
def plain(value: Object) -> Object: ...
@overload
def plain(value: object) -> object: ...
def plain(value: object) -> object:
    """The same with half surrogates replaced: JSON may escape them, and no browser can be sent one."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value
