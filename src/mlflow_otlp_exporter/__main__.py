"""`python -m mlflow_otlp_exporter`: the same as `mlflow-otlp`."""

import sys

from mlflow_otlp_exporter._internal.cli.main import main

sys.exit(main())
