"""Runs a program inside the sandbox and hands out the files it leaves; imports none of ours.

    python -c SOURCE FD MOST_BYTES NAMES_AS_JSON PROGRAM ...

Flows out on FD: a JSON object from name to content in base64; a name that is no regular file is left out, and
so is what exceeds MOST_BYTES together. Ends with the program's exit code.
"""

import base64
import json
import os
import stat
import subprocess
import sys


def main() -> int:
    fd, most, names = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    os.set_inheritable(fd, False)
    try:
        code = subprocess.run(sys.argv[4:], close_fds=True).returncode
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        os.write(2, f"{sys.argv[4][:200]}: {said}\n".encode(errors="backslashreplace"))
        code = 127
    found = {}
    for name in names:
        try:
            # not to wait for the other end of a pipe
            with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    content = file.read(most + 1)
                    most -= len(content)
                    if most >= 0:
                        found[name] = base64.b64encode(content).decode()
        except (OSError, ValueError):  # ValueError: a name that no file can have
            continue
    with open(fd, "w", encoding="utf-8") as out:
        json.dump(found, out)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
