"""Flask, alone or under gunicorn."""

import os
import sys

from agent import serve
from flask import Flask, request

from mlflow_otlp_exporter import configure

configure()
app = Flask(__name__)


@app.get("/")
def ask() -> str:
    return f"{os.getpid()} {serve(int(request.args['number']))}"


if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]))
