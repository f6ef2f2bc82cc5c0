"""HTTP to a server of models: one request and its JSON answer, and what goes wrong in its class.

Keeps no time: the pool does.
"""

import json
import math
import os
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from rl.models.call import NoApi, Refused, ServiceFault

if TYPE_CHECKING:
    import httpx

# Of a server's error, so much is shown.
SHOWN = 200
# Of an answer: log-probs of a long text are some megabytes.
MOST_BYTES = 64 << 20
# Answers that mean "later", and those of a proxy whose server is away; 409 and 425 ask to try again.
_BUSY, _LATER = (429, 503), (408, 409, 425)
CONNECT_SECONDS = 10.0
# vLLM has what is not OpenAI's beside `/v1`.
_BESIDE = frozenset(("/classify", "/sleep", "/wake_up"))


class HttpWire:
    """One server. `close` it."""

    def __init__(self, url: str, *, key: str = "", model: str = "") -> None:
        """url: with or without `/v1` and what follows. model: as the server calls it; "": its first."""
        self.base = base_of(url)
        self.key = key
        self.model = model
        self._client: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def model_name(self) -> str:
        """The model's name at the server. Raises ServiceFault, Refused."""
        if not self.model:
            found = await self.asked("GET", "/models")
            try:
                self.model = str(found["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise Refused(f"{self.base}/models names none: give models.model") from None
        return self.model

    async def asked(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The JSON object that a path of the API answers. Raises ServiceFault, Refused."""
        import httpx

        sent = None if body is None else json.dumps(body).encode()
        if self._client is None:
            headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None),
                trust_env=not _on_loopback(self.base),
            )
        address, kind = self._address(path), {"Content-Type": "application/json"}
        try:
            asking = self._client.stream(method, address, content=sent, headers=kind)
            async with asking as answer:
                data = await self._data(answer)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ServiceFault(f"{self.base}: {type(error).__name__}: {error}") from None
        shown = data[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN]
        said = f"{self.base}: HTTP {answer.status_code}: {shown}"
        if answer.status_code in (*_BUSY, *_LATER) or answer.status_code >= 500:
            busy = answer.status_code in _BUSY
            raise ServiceFault(said, _retry_after(answer.headers.get("retry-after")), busy=busy)
        if answer.status_code != 200:
            raise Refused(said, answer.status_code)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise NoApi(f"{self.base}: no JSON: {shown!r}") from None
        if not isinstance(found, dict):
            raise NoApi(f"{self.base}: the answer is no JSON object")
        return found

    async def _data(self, answer: "httpx.Response") -> bytes:
        """The body, as far as one may be. Raises ServiceFault, httpx.HTTPError."""
        found = bytearray()
        async for part in answer.aiter_bytes():
            found += part
            if len(found) > MOST_BYTES:
                raise ServiceFault(f"{self.base}: its answer is longer than {MOST_BYTES >> 20} MiB")
        return bytes(found)

    def _address(self, path: str) -> str:
        return (
            self.base.removesuffix("/v1") if path.partition("?")[0] in _BESIDE else self.base
        ) + path


def base_of(url: str) -> str:
    """The base of a server's API, however it was given: with or without `/v1` and what follows."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if url.endswith("/v1") else f"{url}/v1"


def key_of(variable: str) -> str:
    """The key in an environment variable; "" where none is named or set."""
    return os.environ.get(variable, "").strip() if variable else ""


def _retry_after(given: str | None) -> float:
    """Seconds, of a header that gives those or a date; 0 where it says neither."""
    try:
        seconds = float(given or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given or "").timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _on_loopback(base: str) -> bool:
    return base.split("//", 1)[-1].startswith(("127.", "localhost", "[::1]"))
