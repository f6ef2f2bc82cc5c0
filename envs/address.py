"""Addresses of servers in settings: an http URL that names a host, and a port that there can be.

In: text. Out: the same without its last slashes. Refuses, with a ValueError of one sentence, what no client
could reach, so that it is said before a run and not by a library during it."""

from urllib.parse import urlsplit


def http_address(url: str) -> str:
    """A URL as clients join paths to it, such as `http://127.0.0.1:8000`. Raises ValueError."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} has to begin with http:// or https://")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL: {error}") from None
    if not host or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError(f"{url!r} names no host: write it as http://HOST:PORT")
    return url.rstrip("/")
