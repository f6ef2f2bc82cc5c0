"""`[wandb]`, `[trackers]` and `[notify]`: to whom a run reports beside its folder.

Secrets are never settings, which the run folder keeps: `webhook` and `password` may be `"$NAME"`, an
environment variable.
"""

import importlib.util
import os
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveFloat
from pydantic import model_validator as validator

from rollout.config import Section

TrackerName = Literal["wandb", "tensorboard", "trackio", "mlflow", "prometheus", "otel"]
Occasion = Literal["end", "failure", "alert"]
# The modules that a tracker needs, and in which extra of the package they are.
NEEDS: dict[TrackerName, tuple[str, ...]] = {
    "wandb": (),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "prometheus": ("prometheus_client",),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
}


class WandbConfig(Section):
    """Weights & Biases beside the run folder; offline where no key is set."""

    enabled: bool = True
    project: str = "dorado"
    entity: str | None = None


class TensorboardConfig(Section):
    """folder: of the event files; by default `tensorboard` in the run folder."""

    folder: str = ""


class TrackioConfig(Section):
    """folder: of Trackio's databases; by default the one that `trackio show` reads."""

    project: str = "dorado"
    folder: str = ""


class MlflowConfig(Section):
    """uri: of the tracking server or store; by default $MLFLOW_TRACKING_URI, else mlflow.db in `runs_dir`."""

    uri: str = ""
    experiment: str = "dorado"


class PrometheusConfig(Section):
    """Where `/metrics` is served. port: 0 takes a free one; the run folder has the address."""

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)


class OtelConfig(Section):
    """endpoint: of a collector, OTLP over HTTP. share: of the episodes, of which spans are sent."""

    endpoint: str = "http://127.0.0.1:4318"
    share: float = Field(default=1.0, gt=0, le=1)


class TrackersConfig(Section):
    """use: the trackers beside the run folder, by name; W&B is on by `wandb.enabled` too.

    samples: trajectories of each evaluation in the table that a tracker gets, texts included; 0: no table.
    """

    use: tuple[TrackerName, ...] = ()
    samples: int = Field(default=32, ge=0)
    tensorboard: TensorboardConfig = TensorboardConfig()
    trackio: TrackioConfig = TrackioConfig()
    mlflow: MlflowConfig = MlflowConfig()
    prometheus: PrometheusConfig = PrometheusConfig()
    otel: OtelConfig = OtelConfig()

    @validator(mode="after")
    def _once(self) -> "TrackersConfig":
        for name in self.use:
            if self.use.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        return self


class EmailConfig(Section):
    """An SMTP server, and between whom it carries mails. password: `"$NAME"`, an environment variable."""

    host: str
    port: int = Field(default=587, gt=0, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password: str = ""
    sender: str
    to: tuple[str, ...] = Field(min_length=1)

    @validator(mode="after")
    def _no_secret(self) -> "EmailConfig":
        if self.password and not self.password.startswith("$"):
            raise ValueError(
                'password has to be an environment variable, such as "$SMTP_PASSWORD": the run folder '
                "keeps the settings"
            )
        if bool(self.user) != bool(self.password):
            raise ValueError("user and password go together")
        return self


class NotifyConfig(Section):
    """Messages on the end of a run, its failure, and alerts; none where no webhook and no mail is given.

    seconds: between two looks for alerts; those of one look are one message.
    """

    webhook: str = ""
    email: EmailConfig | None = None
    on: tuple[Occasion, ...] = ("end", "failure", "alert")
    seconds: PositiveFloat = 60

    @property
    def enabled(self) -> bool:
        """True if there is somebody to tell."""
        return bool(self.on) and (bool(self.webhook) or self.email is not None)

    @validator(mode="after")
    def _address(self) -> "NotifyConfig":
        if self.webhook and not self.webhook.startswith(("http://", "https://", "$")):
            raise ValueError(
                f"webhook {self.webhook!r} is no address; it begins with https://, or is an environment "
                'variable that holds one, such as "$SLACK_WEBHOOK"'
            )
        return self


def told(value: str) -> str:
    """The value itself, or that of the environment variable that it names; "" where that is not set."""
    return os.environ.get(value[1:], "") if value.startswith("$") else value


def missing(trackers: TrackersConfig, notify: NotifyConfig) -> Iterator[tuple[str, str]]:
    """Find packages that are not installed and variables that are not set: the key and a sentence of each."""
    for name in trackers.use:
        for module in NEEDS[name]:
            if not _installed(module):
                yield (
                    "trackers.use",
                    f"{name!r} needs {module}, which is not installed: pip install 'dorado-rl[trackers]'",
                )
    if notify.webhook and not _installed("httpx"):
        yield "notify.webhook", "needs httpx, which is not installed: pip install httpx"
    email = notify.email
    for key, value in (
        ("notify.webhook", notify.webhook),
        ("notify.email.password", email.password if email else ""),
    ):
        if value and not told(value):
            yield key, f"the environment variable {value[1:]} is not set"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is missing
        return False
