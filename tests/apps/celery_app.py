"""A Celery worker with prefork children; the broker is a folder."""

import os
from pathlib import Path

from agent import serve
from celery import Celery

from mlflow_otlp_exporter import configure

configure()
FOLDER = Path(os.environ["APP_FOLDER"])
app = Celery("celery_app", broker="filesystem://", backend=f"file://{FOLDER / 'results'}")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "queue"),
    "data_folder_out": str(FOLDER / "queue"),
    "control_folder": str(FOLDER / "control"),
}
app.conf.worker_max_tasks_per_child = 7


@app.task(name="ask")
def ask(number: int) -> str:
    return serve(number)
