"""MLflow: a tracking server, or a local SQLite store beside the run folders (`mlflow ui`).

A run goes on as the same one there, by the id in mlflow.id. What MLflow has of steps that a resume undoes it
keeps. Histograms it has none of; the table of each evaluation is an artifact.
"""

import hashlib
import json
import os
import posixpath
import re
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from rl.config_file import flat
from rl.trackers.tracker import Ended, Evaluated, Line, News, RunFacts

# MLflow's own limits on one request and on a parameter, and what a key may not hold.
METRICS, PARAMS, VALUE, NAME = 1000, 100, 500, 250
REFUSED = re.compile(r"[^\w\-. /:]")
# MLflow's own request would wait and try for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
ENDS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "": "FAILED"}


class MlflowTracker:
    """One run of an MLflow experiment."""

    hears = frozenset({Line, Evaluated})

    def __init__(self, run: RunFacts) -> None:
        settings = run.trackers.mlflow
        above = run.runs_dir.resolve()
        uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        local = f"sqlite:///{above / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri or local)
        self._run = self._begin(run, None if uri else f"{(above / 'mlartifacts').as_uri()}")

    def _begin(self, run: RunFacts, artifacts: str | None) -> str:
        """Return the id of a new run, or of the one that goes on."""
        known = run.folder / "mlflow.id"
        if run.order.resumed and known.exists():
            id = known.read_text(encoding="utf-8").strip()
            if self._is_there(id):
                self._client.update_run(id, status="RUNNING")
                return id
        name = run.trackers.mlflow.experiment
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._make(name, artifacts)
        id = self._client.create_run(experiment, run_name=run.name).info.run_id
        known.write_text(f"{id}\n", encoding="utf-8")
        given = {named(k): str(v)[:VALUE] for k, v in flat(run.config).items() if str(v)}
        params = [Param(key, value) for key, value in given.items()]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(id, params=params[first : first + PARAMS])
        self._client.log_batch(id, tags=[RunTag("dorado.folder", str(run.folder))])
        return id

    def _is_there(self, id: str) -> bool:
        """False where the store has no such run: it was removed, or the settings name another store now."""
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise

    def _make(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # another run has made it just now
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def take(self, news: News) -> None:
        """Log a step's metrics, or an evaluation's table."""
        match news:
            case Line():
                self._log(news.values, news.step, news.time)
            case Evaluated() if news.samples:
                columns = {
                    key: [sample.row()[key] for sample in news.samples]
                    for key in news.samples[0].row()
                }
                self._client.log_table(self._run, columns, f"evaluation/{news.when}.json")
            case _:
                pass

    def look(self) -> None:
        """Nothing to look for: each call says whether it has worked."""

    def end(self, ended: Ended) -> None:
        """Log the summary, and end the run there."""
        self._client.log_text(self._run, json.dumps(ended.summary, indent=2), "summary.json")
        self._client.set_terminated(self._run, status=ENDS[ended.outcome])

    def _log(self, values: Mapping[str, float], step: int, at: float) -> None:
        stamp = int((at or time.time()) * 1000)
        metrics = [Metric(named(key), value, stamp, step) for key, value in values.items()]
        for first in range(0, len(metrics), METRICS):
            self._client.log_batch(self._run, metrics=metrics[first : first + METRICS])


def named(key: str) -> str:
    """A key as MLflow takes it: without what it refuses, a path that is its own shortest form, not too long.

    A key that is cut keeps a digest, so that two stay two.
    """
    name = posixpath.normpath(REFUSED.sub("_", key).strip("/ ") or "_")
    name = re.sub(r"^\.\.?(?=/|$)", "_", name)
    if len(name) <= NAME:
        return name
    return f"{name[: NAME - 9]}.{hashlib.sha256(key.encode()).hexdigest()[:8]}"
