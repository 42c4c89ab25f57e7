"""Children of multiprocessing, concurrent.futures, joblib and Ray. Arguments: pool, start method, end."""

import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ends_work import work

from mlflow_otlp_exporter import configure

configure()
KIND, METHOD, END = sys.argv[1:]
TASKS = 4


def task(number: int) -> int:
    configure()
    work()
    if number < 0 and END == "exception":
        raise RuntimeError(number)
    return os.getpid()


def run_child(ready: Any) -> None:
    task(0)
    if END == "sys.exit":
        sys.exit(3)
    if END == "exception":
        raise RuntimeError
    ready.set()
    if END in ("terminate", "kill"):
        signal.pause()


def run_processes() -> None:
    context: Any = multiprocessing.get_context(METHOD)
    ready = context.Event()
    children = [context.Process(target=run_child, args=(ready,)) for _ in range(2)]
    for child in children:
        child.start()
        if END in ("terminate", "kill"):
            ready.wait()
            ready.clear()
            getattr(child, END)()
    for child in children:
        child.join()
    codes = {"return": 0, "sys.exit": 3, "exception": 1, "terminate": -signal.SIGTERM, "kill": -signal.SIGKILL}
    assert [child.exitcode for child in children] == [codes[END]] * 2


def run_pool() -> None:
    per_child = 1 if END == "max-tasks" else None
    with multiprocessing.get_context(METHOD).Pool(2, maxtasksperchild=per_child) as pool:
        pool.map(task, range(TASKS), chunksize=1)
        if END != "terminate":
            pool.close()
            pool.join()


def run_executor() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context(METHOD)) as executor:
        list(executor.map(task, range(TASKS)))
        if END == "exception":
            assert isinstance(executor.submit(task, -1).exception(), RuntimeError)


def run_joblib() -> None:
    from joblib import Parallel, delayed

    Parallel(n_jobs=2, backend=METHOD)(delayed(task)(number) for number in range(TASKS))
    if END == "exception":
        Parallel(n_jobs=2, backend=METHOD)(delayed(task)(number) for number in (-1, -2))


def run_ray() -> None:
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    remote_task = ray.remote(task)
    ray.get([remote_task.remote(number) for number in range(TASKS)])
    if METHOD == "actor":

        class Actor:
            def answer(self) -> int:
                return task(0)

            def end(self) -> None:
                ray.actor.exit_actor()

        actor = ray.remote(Actor).options(num_cpus=0).remote()
        ray.get(actor.answer.remote())
        if END == "exit_actor":
            actor.end.remote()
        elif END == "kill":
            ray.kill(actor)
    ray.shutdown()


if __name__ == "__main__":
    work()
    {
        "process": run_processes,
        "pool": run_pool,
        "executor": run_executor,
        "joblib": run_joblib,
        "ray": run_ray,
    }[KIND]()
