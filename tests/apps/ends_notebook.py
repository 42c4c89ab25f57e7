"""A notebook, executed by nbclient in a kernel of its own. Argument: how the kernel ends."""

import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

CELLS = {
    "return": "work()",
    "exception": "work(); raise RuntimeError",
    "kill": "work(); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}
sources = ["from ends_work import work; from mlflow_otlp_exporter import configure; configure()"]
sources += ["work()", CELLS[sys.argv[1]]]
cells = [nbformat.v4.new_code_cell(source) for source in sources]  # type: ignore[no-untyped-call]
notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
try:
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
except (CellExecutionError, DeadKernelError) as error:
    print(type(error).__name__)
