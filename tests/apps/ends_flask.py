"""A Flask app for the development server."""

import os

from ends_work import work
from flask import Flask

from mlflow_otlp_exporter import configure

configure()
app = Flask(__name__)


@app.get("/work")
def answer() -> str:
    work()
    return str(os.getpid())


@app.get("/ready")
def ready() -> str:
    return str(os.getpid())
