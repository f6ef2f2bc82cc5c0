"""A checkpoint served by vLLM's own OpenAI server: a child process on the loopback, supervised.

`watch` starts it, looks at its health, and starts it again where it has died or hangs. It ends with this
process: by `close`, and where this process is killed, by the kernel's signal to the child, whose own
processes notice that it is gone. Its output is in a file of the run folder.
"""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rl.model_table import ServeConfig
from rl.nodes.parent import ends_with_this_process
from rollout.vllm_server import SERVED, server_command, server_environment

if TYPE_CHECKING:
    import httpx

# Between two looks; a health check that takes longer has failed; so many in a row are a hang.
LOOK_SECONDS, HEALTH_SECONDS, HANGS_AFTER = 1.0, 20.0, 3
END_SECONDS = 5.0


class ServerFailed(Exception):
    """The server cannot be started, or not any more; the message says why and where its log is."""


class Server:
    """One vLLM server for one checkpoint."""

    def __init__(
        self,
        name: str,
        checkpoint: str,
        config: ServeConfig,
        log: Path,
        say: Callable[[str], None],
        *,
        scores: bool = False,
    ) -> None:
        """say: hears a sentence of each end and start. scores: it is a reward model."""
        self.name = name
        self.checkpoint = checkpoint
        self.config = config
        self.scores = scores
        self.log = log
        self.say = say
        self.key = secrets.token_hex(16)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.failed = ""

    @property
    def url(self) -> str:
        """Where it answers, once it has been started."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def model(self) -> str:
        """Its name for the model."""
        return SERVED

    @property
    def line(self) -> str:
        """For the status."""
        if self.failed:
            return self.failed
        if self.process is None:
            return "its server is not running"
        again = f", started {self.starts} times" if self.starts > 1 else ""
        return f"vLLM server {self.process.pid} on port {self.port}{again}"

    def start(self) -> None:
        """Start the process. It takes requests later: see `ready`."""
        self.port = self.port or _free_port()
        config = self.config
        command = server_command(
            self.checkpoint,
            self.port,
            device=config.device,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            scores=self.scores,
            sleeps=config.sleep_seconds > 0,
            given=config.vllm,
        )
        environment = server_environment(
            device=config.device,
            threads=config.threads,
            kv_cache_gib=config.kv_cache_gib,
            key=self.key,
            sleeps=config.sleep_seconds > 0,
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=ends_with_this_process(),
            )
        self.starts += 1

    async def ready(self) -> None:
        """Wait until it answers. Raises ServerFailed."""
        end = time.monotonic() + self.config.start_seconds
        async with _client() as client:
            while not await self._healthy(client):
                if self.process is None or self.process.poll() is not None:
                    raise ServerFailed(
                        f"its vLLM server ended while it started: {self._last_words()}"
                    )
                if time.monotonic() > end:
                    raise ServerFailed(
                        f"its vLLM server did not answer within {self.config.start_seconds:g} s "
                        f"(log: {self.log})"
                    )
                await asyncio.sleep(LOOK_SECONDS / 2)

    async def _healthy(self, client: "httpx.AsyncClient") -> bool:
        """Ask its health, with a deadline."""
        import httpx

        try:
            answer = await client.get(f"http://127.0.0.1:{self.port}/health")
        except (httpx.HTTPError, OSError):
            return False
        return answer.status_code == 200

    async def watch(self, stuck: Callable[[], bool], back: Callable[[], None]) -> None:
        """Start it again whenever it has died or hangs, as often as `restarts` says; then raise ServerFailed.

        Consumes health checks, and `stuck`: True where it is healthy by its own account and answers nobody.
        back: called when it answers again.
        Waits for nobody for longer than a check's deadline.
        """
        while True:
            ended = await self._until_lost(stuck)
            code = None if self.process is None else self.process.returncode
            why = f"has ended (code {code})" if ended else "hangs"
            await asyncio.to_thread(self.end)
            if self.starts > self.config.restarts:
                self.failed = (
                    f"its vLLM server {why}, started {self.starts} times (log: {self.log})"
                )
                self.say(f"model {self.name!r}: {self.failed}; it is not started again")
                raise ServerFailed(self.failed)
            self.say(
                f"model {self.name!r}: its vLLM server {why}; it is started again (log: {self.log})"
            )
            self.start()
            try:
                await self.ready()
            except ServerFailed as error:
                self.say(f"model {self.name!r}: {error}")
            else:
                self.say(f"model {self.name!r}: its vLLM server answers again")
                back()

    async def _until_lost(self, stuck: Callable[[], bool]) -> bool:
        """Wait until it has ended (True), or hangs."""
        sick = 0
        async with _client() as client:
            while sick < HANGS_AFTER and not stuck():
                await asyncio.sleep(LOOK_SECONDS)
                if self.process is None or self.process.poll() is not None:
                    return True
                sick = 0 if await self._healthy(client) else sick + 1
        return False

    def end(self) -> None:
        """End the process and those that it has started, which are in its group."""
        process, self.process = self.process, None
        if process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            if sign == signal.SIGTERM and not _group_is_there(process.pid):
                return

    def _last_words(self) -> str:
        """The first error in its log since it was begun, which caused the later ones."""
        lines = self.log.read_text(errors="replace", encoding="utf-8").splitlines()[-400:]
        found = [n for n, line in enumerate(lines) if "Error: " in line and " WARNING " not in line]
        if not found:
            return f"it said nothing (log: {self.log})"
        # pydantic says what is wrong in the lines behind.
        told = 3 if "validation error" in lines[found[0]] else 1
        said = " ".join(line.split(") ", 1)[-1].strip() for line in lines[found[0] :][:told])
        return f"{said[:300]} (log: {self.log})"


def _client() -> "httpx.AsyncClient":
    import httpx

    # Nothing to verify: it is this machine, without encryption.
    return httpx.AsyncClient(timeout=HEALTH_SECONDS, trust_env=False, verify=False)


def _group_is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
