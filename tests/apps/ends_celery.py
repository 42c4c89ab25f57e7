"""A Celery worker that gives itself tasks; the broker is a folder."""

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from ends_work import work

from mlflow_otlp_exporter import configure

configure()
FOLDER = Path(os.environ["APP_FOLDER"])
app = Celery("ends_celery", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": str(FOLDER / "queue"),
    "data_folder_out": str(FOLDER / "queue"),
    "control_folder": str(FOLDER / "control"),
}


@app.task(name="answer")
def answer() -> None:
    work()


@worker_ready.connect
def add_tasks(**_: Any) -> None:
    for _number in range(int(os.environ["APP_TASKS"])):
        answer.delay()
