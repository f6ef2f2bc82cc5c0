"""Calls a function as an agent: `python call.py FILE NAME`, in a process of its own; imports none of ours.

The function gets the task's data, a dict, and has the policy's address in its environment; it may be async.
The process ends with code 0 where it returns.
"""

import asyncio
import importlib.util
import inspect
import json
import sys
from pathlib import Path


def main(file: str, name: str) -> None:
    """Run it. Raises whatever it does."""
    path = Path(file)
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    result = getattr(module, name)(json.load(sys.stdin))
    if inspect.isawaitable(result):

        async def ended() -> object:
            return await result

        asyncio.run(ended())


if __name__ == "__main__":
    main(*sys.argv[1:])
