"""Makes a program's files inside the sandbox and becomes the program; imports none of ours.

    python -c SOURCE FD

Flows in on FD: the files and the command, marshalled. Names come from whoever wrote the program, so one that
no file can have is the program's own error: a line on stderr, and code 126.
"""

import contextlib
import marshal
import os
import sys


def fail(name: str, error: OSError | ValueError, code: int) -> None:
    said = error.strerror if isinstance(error, OSError) else str(error)
    os.write(2, f"{name[:200]}: {said}\n".encode(errors="backslashreplace"))
    os._exit(code)


def make_folders(name: str) -> None:
    """Make the folders above a file; `os.makedirs` calls itself for each, and there can be thousands."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(name)  # too long as a whole: said before thousands of folders are made
    parts = name.split("/")
    for depth in range(1, len(parts)):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(parts[:depth]))


def main() -> None:
    with open(int(sys.argv[1]), "rb") as file:
        files, argv = marshal.load(file)
    for name, content in files.items():
        try:
            make_folders(name)
            with open(name, "wb") as file:
                file.write(content)
        except (OSError, ValueError) as error:
            fail(name, error, 126)
    try:
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        fail(argv[0], error, 127)


if __name__ == "__main__":
    main()
