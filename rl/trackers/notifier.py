"""Notifications: a webhook (JSON by POST) and e-mail (SMTP) on the end of a run, its failure, and alerts.

It begins before anything else of a run, and its process outlives that of a run which was killed: that too is
told. Alerts are those of the dashboard, warnings and errors; each is told once, and again when it has been
away for an hour.
"""

import math
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from typing import cast

import httpx

from rl.dashboard.alerts import alerts
from rl.dashboard.run_data import RunData
from rl.tracker_config import EmailConfig, Occasion, told
from rl.trackers.tracker import Ended, News, RunFacts, say

# Seconds for one message to go out; tries of it; and after how many seconds an alert is news again.
SEND_SECONDS, TRIES, AGAIN_SECONDS = 10.0, 2, 3600.0

# States of a run whose end is told on its own.
ENDED = ("finished", "failed", "interrupted", "ended")


class Notifier:
    """Tells the webhook and the mail server of one run."""

    hears: frozenset[type] = frozenset()

    def __init__(self, run: RunFacts, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that only grow."""
        self._run = run
        self._clock = clock
        self._settings = run.notify
        self._data = RunData(run.folder)
        # Alerts that were told, without their figures, and when each was last seen.
        self._seen: dict[str, float] = {}
        self._next = 0.0
        self._failed: set[str] = set()

    def take(self, news: News) -> None:
        """It hears of nothing, and reads the folder itself."""

    def look(self) -> None:
        """Tell of alerts that are new."""
        now = self._clock()
        if now < self._next or "alert" not in self._settings.on:
            return
        self._next = now + self._settings.seconds
        self._data.refresh()
        if self._data.state() in ENDED:
            return
        found = [one.text for one in alerts(self._data) if one.level != "note"]
        if new := [text for text in found if self._is_new(text, now)]:
            self._tell("alert", "\n".join(new), alerts=new)

    def end(self, ended: Ended) -> None:
        """Tell how the run has ended."""
        kind: Occasion = "end" if ended.outcome in ("finished", "interrupted") else "failure"
        if kind not in self._settings.on:
            return
        nothing = "it ended without a word: it was killed, or could not start"
        said = ended.said or ("" if ended.outcome else nothing)
        text = ": ".join(part for part in (ended.outcome or "failed", said) if part)
        self._tell(kind, text, outcome=ended.outcome, summary=finite(ended.summary))

    def _is_new(self, text: str, now: float) -> bool:
        """True if an alert has not been seen for long; its figures change from look to look."""
        key = re.sub(r"[-+]?\d[\d.,e%]*", "#", text)
        last = self._seen.get(key)
        self._seen[key] = now
        return last is None or now - last > AGAIN_SECONDS

    def _tell(self, kind: Occasion, text: str, **more: object) -> None:
        name = self._run.name
        message = {
            "text": f"dorado {name}: {text}",
            "run": name,
            "kind": kind,
            "folder": str(self._run.folder),
            "time": time.time(),
            **more,
        }
        if address := told(self._settings.webhook):
            self._try("webhook", lambda: post(address, message))
        if (email := self._settings.email) is not None:
            subject = f"dorado {name}: {text.splitlines()[0][:120]}"
            body = f"{text}\n\nRun folder: {self._run.folder}\nHost: {socket.gethostname()}\n"
            self._try("e-mail", lambda: send(email, subject, body))

    def _try(self, what: str, act: Callable[[], None]) -> None:
        for left in reversed(range(TRIES)):
            try:
                act()
                return
            except (OSError, smtplib.SMTPException, httpx.HTTPError, httpx.InvalidURL) as error:
                if not left and what not in self._failed:
                    self._failed.add(what)
                    said = " ".join(str(error).split())[:200] or type(error).__name__
                    say(f"{what}: {said}; messages may be missing there")


def post(address: str, message: dict[str, object]) -> None:
    """Send a message as JSON. Raises httpx.HTTPError, which does not name the address, a secret perhaps."""
    try:
        httpx.post(address, json=message, timeout=SEND_SECONDS).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise httpx.HTTPError(f"it answers {error.response.status_code}") from None


def finite(value: object) -> object:
    """The same without numbers that JSON does not have: of nan and infinities the name is told."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in cast(Mapping[object, object], value).items()}
    return [finite(one) for one in cast(list[object], value)] if isinstance(value, list) else value


def send(email: EmailConfig, subject: str, body: str) -> None:
    """Send a mail. Raises OSError, smtplib.SMTPException."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, email.sender, ", ".join(email.to)
    message.set_content(body)
    trusted = ssl.create_default_context()
    server: smtplib.SMTP = (
        smtplib.SMTP_SSL(email.host, email.port, timeout=SEND_SECONDS, context=trusted)
        if email.security == "tls"
        else smtplib.SMTP(email.host, email.port, timeout=SEND_SECONDS)
    )
    with server:
        if email.security == "starttls":
            server.starttls(context=trusted)
        if email.user:
            server.login(email.user, told(email.password))
        server.send_message(message)
