"""A pool of processes, each of which traces its own work."""

import multiprocessing
import sys

from agent import serve

from mlflow_otlp_exporter import configure

configure()

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        assert all("rain" in answer for answer in pool.map(serve, range(int(sys.argv[2])), chunksize=1))
        pool.close()
        pool.join()
