"""Checks that an environment's state could go to another process.

A handle (a connection, a process, a lock: whatever can be closed, ended or released) is let pass, for it
is made anew on the other side. A lambda, a generator or a local class in the state is not.
"""

import io
import pickle
import types
from typing import Any

_RELEASES = ("close", "aclose", "kill", "terminate", "cancel", "release", "shutdown", "cleanup")
_NO_HANDLES = (type, types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)


class _Lenient(pickle.Pickler):
    def reducer_override(self, obj: Any, /) -> Any:
        if not isinstance(obj, _NO_HANDLES) and any(hasattr(obj, name) for name in _RELEASES):
            return type(None), ()
        return NotImplemented


def unpicklable(value: Any) -> str | None:
    """Why this cannot be pickled, handles apart; None where it can."""
    try:
        _Lenient(io.BytesIO()).dump(value)
    except Exception as error:  # __reduce__ is the author's
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None
