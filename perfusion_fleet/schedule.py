"""Distributes jobs to Ray workers, one at a time to each, until all are done; a job whose worker is lost is rescheduled."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # must precede the import of ray: turns off its usage reports
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns that its default will change

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from perfusion_core import PerfusionError
from perfusion_fleet.table import Job
from perfusion_fleet.worker import Answer, Place, Worker

LOCAL = "local"
TRIES = 3
"""Number of lost workers after which a job has failed."""
STORE = 128 * 2**20
"""Bytes of Ray's object store on this machine; results are small and are fetched immediately."""
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
UNTIL_BACK = {"max_task_retries": -1}
"""Options of a call that waits until a lost worker has been restarted."""


@dataclass(frozen=True)
class Outcome:
    """The answer to a job, the number of workers that it was given to, and the seconds that the last of them took."""

    job: Job
    answer: Answer
    tries: int
    seconds: float


def connect(address: str, workers: int | None, cpu: bool) -> None:
    """Start Ray on this machine or connect to a cluster; raise PerfusionError if that fails."""
    here = {"num_cpus": max(workers or 1, os.cpu_count() or 1), "object_store_memory": STORE} if address == LOCAL else {}
    if here and cpu:
        here["num_gpus"] = 0
    try:
        ray.init(address, include_dashboard=False if here else None, log_to_driver=False, logging_level="ERROR", **here)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise PerfusionError(
            f"Ray could not be reached at {address}: {one_line(error)}; run `ray status` there, and set RAY_AUTH_MODE=token here "
            "if that cluster requires a token."
        ) from error


def started(place: Place, workers: int | None) -> list[Any]:
    """Start `workers` workers and return them; by default one per graphics card, or with `place.cpu` one per machine.

    Raises:
        PerfusionError: the cluster has no room for that many workers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cards = int(sum(node.get("GPU", 0) for node in nodes))
    if place.cpu:
        count = workers or len(nodes)
        cores = math.floor(min(node.get("CPU", 0) for node in nodes) / math.ceil(count / len(nodes)))
        room, share = cores >= 1, {"num_cpus": max(1, cores)}
    else:
        count = workers or cards
        room, share = 1 <= count <= cards, {"num_cpus": 1, "num_gpus": 1}
    if not room:
        raise PerfusionError(
            f"There is not enough room for the workers (requested: {count or 1}, machines: {len(nodes)}, graphics cards: {cards}); "
            "lower --workers, or add --cpu to train on CPUs."
        )
    actor = ray.remote(max_restarts=-1, scheduling_strategy="SPREAD", **share)(Worker)
    return [actor.remote(place) for _ in range(count)]


def checked(worker: Any, jobs: list[Job]) -> list[str]:
    """Return a sentence for each fault that `Worker.check` finds in the jobs; raise PerfusionError if the worker cannot start."""
    try:
        return ray.get(worker.check.options(**UNTIL_BACK).remote(jobs))
    except (RayTaskError, *LOST) as error:
        raise not_started(error) from error


def outcomes(workers: list[Any], jobs: Iterable[Job], say: Callable[[str], None]) -> Iterator[Outcome]:
    """Run the jobs and yield the outcome of each as it finishes.

    Args:
        workers: actors with the methods `ready` and `teach` of `Worker`.
        jobs: started in this order; a job whose worker was lost is started next.
        say: called with a line for each worker that becomes ready, is lost or cannot be started.

    Raises:
        PerfusionError: no worker could be started.
    """
    waiting, idle, tries = deque(jobs), [], Counter[str]()
    running = {worker.ready.options(**UNTIL_BACK).remote(): (worker, None, 0.0) for worker in workers}
    while waiting or any(job for _, job, _ in running.values()):
        while waiting and idle:
            worker, job = idle.pop(), waiting.popleft()
            tries[job.name] += 1
            running[worker.teach.remote(job)] = worker, job, time.monotonic()
        (done,), _ = ray.wait(list(running), num_returns=1)
        worker, job, start = running.pop(done)
        try:
            answer = ray.get(done)
        except (RayTaskError, *LOST) as error:
            if job is None:
                if not (running or idle):
                    raise not_started(error) from error
                say(str(not_started(error)))
                continue
            if isinstance(error, LOST):
                say(f"A worker was lost while training {job.name}.")
                running[worker.ready.options(**UNTIL_BACK).remote()] = worker, None, 0.0
                if tries[job.name] < TRIES:
                    waiting.appendleft(job)
                    continue
                answer = Answer(fault=f"{TRIES} workers were lost while training it; it may need more memory than they have.")
            else:
                idle.append(worker)
                answer = Answer(fault=f"Its training failed: {one_line(error.cause)}.")
        else:
            idle.append(worker)
        if job is None:
            say(f"A worker is ready: {answer}.")
        else:
            yield Outcome(job, answer, tries[job.name], time.monotonic() - start)


def not_started(error: Exception) -> PerfusionError:
    """Return the error for a worker that cannot be started."""
    return PerfusionError(f"A worker could not be started: {one_line(getattr(error, 'cause', None) or error)}.")


def one_line(error: object) -> str:
    """Return the last line of an error's text without its full stop, since Ray's errors contain whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
