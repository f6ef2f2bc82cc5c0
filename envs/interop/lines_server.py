"""The server in a child interpreter: answers JSON lines by the functions of a script. Standard library only.

    python -I lines_server.py SCRIPT
    in:  {"method": "score", "arguments": {...}}      out: {"result": 1.0} or {"error": "ValueError: ..."}

SCRIPT has `load()`, which imports the foreign package and returns (functions by name, versions by
distribution); `versions` is a method of every server. The first line out, before any request, says that the
import is done. Ends when its input ends, in the middle of a request too. What the foreign code prints goes
to stderr.
"""

import json
import os
import queue
import runpy
import sys
import threading
from typing import Any


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy as JSON; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def main() -> None:
    """Serve until the input ends."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)

    def write(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, default=plain) + "\n")
        answers.flush()

    threading.Thread(target=read, daemon=True).start()
    methods, versions = runpy.run_path(sys.argv[1])["load"]()
    methods["versions"] = lambda: versions
    write({"result": "ready"})
    while True:
        request = json.loads(lines.get())
        try:
            write({"result": methods[request["method"]](**request["arguments"])})
        except Exception as error:  # the foreign code can fail in any way; the asker judges
            write({"error": " ".join(f"{type(error).__name__}: {error}".split())})


if __name__ == "__main__":
    main()
