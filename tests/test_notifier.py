"""Notifications: a webhook and a mail server hear of a run's end, failure and alerts, and stall no run."""

import json
import time
from collections.abc import Callable
from email import message_from_string
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from recorded_run import RecordedRun
from test_trackers import Played, until
from tracker_servers import HttpServer, SmtpServer, listening, own_certificate

from rl.config import RunConfig
from rl.dashboard import run_data
from rl.record.status import Outcome, write_end
from rl.tracker_config import EmailConfig, NotifyConfig, TrackersConfig, WandbConfig, missing, told
from rl.trackers import notifier
from rl.trackers import trackers as trackers_module
from rl.trackers.notifier import Notifier, finite, send
from rl.trackers.tracker import Ended, Order, RunFacts

BROKEN = {"env/orders/breaker": 1.0, "time/total_seconds": 1.0}


def notifying(
    tmp_path: Path, webhook: str = "", clock: Callable[[], float] = time.monotonic, **more: Any
) -> tuple[RecordedRun, Notifier]:
    """A run that has begun, and its notifications, in this process."""
    run = RecordedRun(tmp_path)
    facts = RunFacts(
        folder=run.path,
        name="demo",
        runs_dir=tmp_path,
        config={},
        trackers=TrackersConfig(),
        wandb=WandbConfig(),
        notify=NotifyConfig.model_validate({"webhook": webhook, **more}),
        order=Order("notify", str(run.path)),
    )
    return run, Notifier(facts, clock)


def email(server: SmtpServer, **more: Any) -> dict[str, Any]:
    """Settings of mails to a stand-in, which has no certificate."""
    ends = {"sender": "dorado@example.org", "to": ["ada@example.org", "bob@example.org"]}
    return {"host": "127.0.0.1", "port": server.port, "security": "none", **ends, **more}


@pytest.mark.parametrize(
    ("outcome", "said", "kind", "text"),
    [
        ("finished", "", "end", "dorado demo: finished"),
        ("interrupted", "interrupted; it lies there", "end", "interrupted: interrupted; it lies"),
        ("failed", "error: the learner died", "failure", "failed: error: the learner died"),
        ("", "", "failure", "failed: it ended without a word: it was killed, or could not start"),
    ],
)
def test_a_webhook_hears_how_a_run_has_ended(tmp_path, outcome: Outcome, said, kind, text):
    server = HttpServer("answers")
    with listening(server):
        run, told_by = notifying(tmp_path, f"{server.url}/hook")
        told_by.end(Ended(outcome, said, {"steps": 3}))
    run.close()
    [(path, body)] = server.posts
    message = json.loads(body)
    assert path == "/hook" and text in message["text"]
    assert (message["run"], message["kind"], message["outcome"]) == ("demo", kind, outcome)
    assert message["summary"] == {"steps": 3} and message["folder"] == str(run.path)


def test_an_alert_is_told_once_whatever_its_figures_and_again_when_it_was_away_for_an_hour(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_data, "FRESH_SECONDS", 0.0)
    clock = 1000.0
    server = HttpServer("answers")
    with listening(server):
        run, told_by = notifying(tmp_path, server.url, lambda: clock, seconds=60)
        faults = {"rollout/units/trajectories": 100.0, "rollout/units/faults": 10.0}
        run.folder.metrics(1, BROKEN | faults)
        told_by.look()
        [(_, body)] = server.posts
        message = json.loads(body)
        assert message["kind"] == "alert" and len(message["alerts"]) == 2
        assert "orders: its breaker is open, so it gets no new episodes." in message["alerts"]
        clock += 30
        told_by.look()
        run.folder.metrics(2, BROKEN | faults | {"rollout/units/faults": 30.0})
        clock += 60
        told_by.look()
        assert len(server.posts) == 1, "only the figure has changed"
        run.folder.metrics(3, {"env/orders/breaker": 0.0, "time/total_seconds": 1.0})
        clock += 61
        told_by.look()
        run.folder.metrics(4, BROKEN)
        clock += 3601
        told_by.look()
        assert "its breaker is open" in json.loads(server.posts[-1][1])["text"]
    run.close()


def test_what_is_not_asked_for_is_not_told(tmp_path):
    server = HttpServer("answers")
    with listening(server):
        run, told_by = notifying(tmp_path, server.url, on=["failure"])
        run.folder.metrics(1, BROKEN)
        told_by.look()
        told_by.end(Ended("finished", "", {}))
        assert server.posts == []
        told_by.end(Ended("failed", "error: no", {}))
        assert len(server.posts) == 1
    run.close()


def test_a_mail_says_what_has_happened_and_where(tmp_path):
    server = SmtpServer("answers")
    with listening(server):
        run, told_by = notifying(tmp_path, email=email(server))
        told_by.end(Ended("failed", "error: the léarner died\nX-Header: no", {}))
    run.close()
    [text] = server.mails
    mail = message_from_string(text, policy=default)
    assert mail["Subject"] == "dorado demo: failed: error: the léarner died"
    assert mail["To"] == "ada@example.org, bob@example.org"
    assert mail["X-Header"] is None
    assert f"Run folder: {run.path}" in mail.get_content()


@pytest.mark.heavy
@pytest.mark.parametrize("manner", ["hangs", "fails"])
def test_servers_that_hang_or_fail_are_one_warning_each(tmp_path, monkeypatch, capsys, manner):
    monkeypatch.setattr(notifier, "SEND_SECONDS", 0.2)
    web, post = HttpServer(manner), SmtpServer(manner)
    with listening(web), listening(post):
        run, told_by = notifying(tmp_path, f"{web.url}/secret", email=email(post))
        for _ in range(2):
            told_by.end(Ended("finished", "", {}))
    run.close()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("says: ")]
    assert [line.split(":")[1].strip() for line in said] == ["webhook", "e-mail"]
    assert "secret" not in "".join(said), "an address may be one"


def test_a_mail_is_not_sent_to_a_server_that_has_no_starttls(tmp_path):
    server = SmtpServer("answers")
    settings = EmailConfig.model_validate(email(server, security="starttls"))
    with listening(server), pytest.raises(notifier.smtplib.SMTPNotSupportedError):
        send(settings, "subject", "body")
    assert server.mails == []


def test_a_mail_and_its_password_go_behind_starttls_to_a_server_whose_certificate_is_trusted(
    tmp_path, monkeypatch
):
    certificate, context = own_certificate(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    server = SmtpServer("answers", context)
    login = {"user": "ada", "password": "$SMTP_PASSWORD"}
    given = email(server, **login)
    del given["security"]  # the default
    with listening(server):
        send(EmailConfig.model_validate(given), "subject", "body")
    [mail], [sent] = server.mails, server.logins
    assert mail.endswith("body\r\n") and sent == b"\0ada\0secret"


@pytest.mark.parametrize(
    ("address", "trusted", "why"),
    [("127.0.0.1", False, "self-signed certificate"), ("127.0.0.2", True, "IP address mismatch")],
)
def test_a_server_with_another_certificate_gets_neither_mail_nor_password(
    tmp_path, monkeypatch, capsys, address, trusted, why
):
    certificate, context = own_certificate(tmp_path, address)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    server = SmtpServer("answers", context)
    login = {"user": "ada", "password": "$SMTP_PASSWORD", "security": "starttls"}
    with listening(server):
        run, told_by = notifying(tmp_path, email=email(server, **login))
        told_by.end(Ended("finished", "", {}))
    run.close()
    assert (server.mails, server.logins) == ([], [])
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("says: ")]
    assert "e-mail: " in said and why in said and "secret" not in said


@pytest.mark.process
def test_a_run_tells_of_an_alert_and_of_its_end_and_of_a_run_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 100.0)
    web, post = HttpServer("answers"), SmtpServer("answers")
    with listening(web), listening(post):
        notify = {"webhook": web.url, "email": email(post), "seconds": 1}
        played = Played(tmp_path, notify=notify)
        played.trackers.begin()
        played.run.folder.metrics(1, BROKEN)
        until(lambda: web.posts)
        write_end(played.path, "failed", "error: the learner died")
        played.trackers.close()
        played.run.close()
        kinds = [json.loads(body)["kind"] for _, body in web.posts]
        assert kinds == ["alert", "failure"] and len(post.mails) == 2
        assert "error: the learner died" in json.loads(web.posts[-1][1])["text"]
        assert played.said == []
        killed = Played(tmp_path / "other", notify=notify)
        killed.trackers.begin()
        killed.trackers.close()  # as its standard input ends with a run that is killed
        killed.run.close()
        assert "ended without a word" in json.loads(web.posts[-1][1])["text"]


def test_a_summary_with_nan_is_told_as_json():
    told = finite({"a": [1.5, float("nan")], "b": {"c": float("-inf")}, "d": "x", "e": None})
    assert told == {"a": [1.5, "nan"], "b": {"c": "-inf"}, "d": "x", "e": None}


@pytest.mark.process
@pytest.mark.parametrize("manner", ["hangs", "fails"])
def test_a_webhook_that_hangs_or_fails_stalls_no_run(tmp_path, monkeypatch, manner):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 3.0)
    web = HttpServer(manner)
    with listening(web):
        played = Played(tmp_path, notify={"webhook": web.url, "seconds": 1})
        played.trackers.begin()
        played.run.folder.metrics(1, BROKEN)
        until(lambda: web.posts)
        began = time.monotonic()
        for step in (1, 2):
            played.step(step)
        assert time.monotonic() - began < 2, "the run does not wait for it"
        played.end()
    assert len(played.said) == 1 and played.said[0].startswith("notifications: ")


def test_packages_that_are_not_there_and_variables_that_are_not_set_are_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    monkeypatch.setenv("HOOK", "https://example.org/x")
    assert told("$HOOK") == "https://example.org/x" and told("https://x") == "https://x"
    assert list(missing(TrackersConfig(), NotifyConfig(webhook="$HOOK"))) == []
    [(key, sentence)] = missing(TrackersConfig(), NotifyConfig(webhook="$NO_SUCH_HOOK"))
    assert (key, sentence) == (
        "notify.webhook",
        "the environment variable NO_SUCH_HOOK is not set",
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [(key, sentence)] = missing(TrackersConfig(use=("tensorboard",)), NotifyConfig())
    assert key == "trackers.use"
    assert "'tensorboard' needs tensorboard, which is not installed" in sentence


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trackers": {"use": ["tensorbord"]}}, "tensorboard"),
        ({"trackers": {"use": ["otel", "otel"]}}, "'otel' is named twice"),
        ({"trackers": {"use": ["wandb"]}, "wandb": {"enabled": False}}, "wandb.enabled"),
        ({"notify": {"webhook": "example.org"}}, "is no address"),
        (
            {"notify": {"email": {"host": "h", "sender": "a", "to": ["b"], "password": "secret"}}},
            "environment variable",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, said):
    given = {"name": "x", "model": {"init": {}}, "env": [{"id": "calculator"}]}
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(given | settings)
