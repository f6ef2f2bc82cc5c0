"""The files of a project that travel with a job, listed as Ray lists them, and the secrets among them.

In: the project's folder and the names that stay behind. Out: the files that would be sent. Refused with one
sentence: files that look like secrets, by a list of names and by their first line.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from rl.config_file import ConfigError

IGNORE_FILES = (".gitignore", ".rayignore")
# Names that tools give to files with keys, tokens and passwords; in lower case, of files and of folders.
SECRETS = (
    ".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".my.cnf",
    ".git-credentials", ".htpasswd", ".boto", ".s3cfg", ".dockercfg", ".vault-token", ".terraformrc",
    ".pat", "*.pat", ".token", "*.token", "token", "token.txt", "token.json", ".hf_token", "hf_token*",
    "auth_token", "api_key*", "apikey*", "*.apikey", "*_api_key", "*_api_key.*", "*_token.txt",
    "credentials", "credentials.*", ".credentials*", "*_credentials.json", "*-credentials.json",
    "application_default_credentials*", "client_secret*", "service_account*", "service-account*",
    "*service_account*.json", "*service-account*.json", "kaggle.json", "secrets", ".secrets", "secret",
    "secrets.*", ".secret*", "secret.*", "*.secret", "*.secrets", "password", "passwords", "password*.txt",
    ".password*", "passwd",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore",
    "*.kdbx", "*.ppk", "*.tfstate", "*.tfstate.*", "*.tfvars", "kubeconfig", "*.kubeconfig",
    ".ssh", ".aws", ".gnupg", ".azure", ".kube", ".docker/config.json", ".gcloud", "gcloud", ".oci",
    ".huggingface", ".kaggle",
)  # fmt: skip
# Of those, what holds none: examples to fill in, the public half of a key, code.
HARMLESS = ("*.example", "*.sample", "*.template", "*.dist", "*.pub", "*.py", "*.md", "*.rst")
_PRIVATE_KEY = (b"-----BEGIN ", b"PRIVATE KEY")
_MOST_NAMED = 5


def check_secrets(project: Path, files: Sequence[Path]) -> None:
    """Raises ConfigError where some of the files look like secrets."""
    secrets = [str(file.relative_to(project)) for file in files if _is_secret(project, file)]
    if secrets:
        more = f" and {len(secrets) - _MOST_NAMED} more" if len(secrets) > _MOST_NAMED else ""
        raise ConfigError(
            f"{project}: files that look like secrets would be sent to the cluster: "
            f"{', '.join(secrets[:_MOST_NAMED])}{more}; name them in .rayignore or .gitignore, or move them "
            "out of the project; --env KEY hands a single variable on"
        )


def shipped(project: Path, excludes: Sequence[str]) -> Iterator[Path]:
    """The files that Ray would send: without `excludes` and without what ignore files on the way name.

    Links are followed, as Ray follows them. Raises ConfigError for a folder that cannot be read.
    """
    return _walk(project, [_matcher(project, excludes)], frozenset())


def _walk(
    folder: Path, excluded: list[Callable[[Path], bool]], above: frozenset[str]
) -> Iterator[Path]:
    excluded = [*excluded, *_ignored_in(folder)]
    real = os.path.realpath(folder)
    # A link to a folder that it lies in; a folder whose own ignore file names all, itself too for Ray.
    if real in above or any(skip(folder) for skip in excluded):
        return
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{folder}: it cannot be sent to the cluster ({error.strerror}); name it in .rayignore"
        ) from None
    for path in found:
        if any(skip(path) for skip in excluded):
            continue
        if path.is_dir():
            yield from _walk(path, excluded, above | {real})
        elif path.is_file():
            yield path


def _ignored_in(folder: Path) -> Iterator[Callable[[Path], bool]]:
    for name in IGNORE_FILES:
        if name == ".gitignore" and os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE") == "1":
            continue
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="surrogateescape")
            yield _matcher(folder, text.splitlines())


def _matcher(folder: Path, patterns: Sequence[str]) -> Callable[[Path], bool]:
    from ray._private.thirdparty.pathspec.pathspec import PathSpec  # the one that Ray decides by

    found = PathSpec.from_lines("gitwildmatch", patterns)
    return lambda path: bool(found.match_file(str(path.relative_to(folder))))


def _is_secret(project: Path, file: Path) -> bool:
    """True for a name of the list: the file's, a folder's above it, or the one that a link leads to."""
    parts = [*file.relative_to(project).parts]
    if os.path.realpath(file) != os.path.join(os.path.realpath(project), *parts):
        parts += Path(os.path.realpath(file)).parts[-3:]
    names = [part.lower() for part in parts]
    names.insert(0, "/".join(names[-2:]))
    if any(fnmatch(names[-1], pattern) for pattern in HARMLESS):
        return False
    if any(fnmatch(name, pattern) for name in names for pattern in SECRETS):
        return True
    return _holds_private_key(file)


def _holds_private_key(file: Path) -> bool:
    """True for PEM and OpenSSH keys under any name; certificates alone are public."""
    begin, end = _PRIVATE_KEY
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
            if not head.lstrip().startswith((begin, b"Bag Attributes")):
                return False
            return end in head + opened.read(2**20)
    except OSError:
        return False
