"""Doing the runs of a sweep: each a process of its own, some side by side, here or on the machines of a Ray cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from pruning.errors import PruningError

LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Attributes:
        recipe: Name or path.
        words: Overrides.
        log: Where what it says is added.
        until: The last stage; None for all.
        threads: Of the CPU; None takes what torch would.
    """

    recipe: str
    words: tuple[str, ...]
    log: Path
    until: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Done:
    """How a run ended: its exit status, what it said last, and after how many seconds."""

    status: int
    said: str
    seconds: float


Submit = Callable[[Task], "Future[Done]"]


def work(task: Task, stopped: Event | None = None) -> Done:
    """Do a run in a process of its own, which is ended if `stopped` is set meanwhile; it can go on another time."""
    command = [sys.executable, "-m", "pruning", "run", task.recipe, *task.words, "--json"]
    command += ["--until", task.until] if task.until else []
    environment = dict(os.environ)
    if task.threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(task.threads))
    began = time.monotonic()
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a", encoding="utf-8") as log:
        start = log.tell()
        # Outside of our group, so that Ctrl-C comes to it from here alone, once.
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                while process.poll() is None and not (stopped and stopped.is_set()):
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(LOOK_SECONDS)
            finally:
                process.terminate()
    text = task.log.read_bytes()[start:].decode("utf-8", "replace")
    return Done(process.returncode, _last(text), time.monotonic() - began)


def _last(text: str) -> str:
    """Return the last thing that a run said: its error, if it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error")), lines[-1] if lines else "")


@contextmanager
def here(jobs: int) -> Iterator[Submit]:
    """Do so many runs at a time on this machine. When the context is left, those that go on are ended."""
    stopped = Event()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield lambda task: pool.submit(work, task, stopped)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def on_ray(address: str, jobs: int) -> Iterator[Submit]:
    """Do so many runs at a time on the machines of a Ray cluster, which see the same files under the same names.

    Args:
        address: Of the cluster; ``auto`` for the one that this machine is part of, ``local`` to start one here.
        jobs: Each takes an equal share of the cluster's CPUs and GPUs.

    Raises:
        PruningError: If Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise PruningError("--ray needs Ray: pip install 'sinkprune[ray]'") from error
    try:
        _knock(address)
        ray.init(
            address=None if address == "local" else address, log_to_driver=False, include_dashboard=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise PruningError(
            f"--ray {address}: there is no such cluster ({str(error).splitlines()[0]}); `ray start` makes one, and "
            "--ray local one on this machine for the time of the sweep"
        ) from error
    try:
        there = ray.cluster_resources()
        share = {name: there.get(name, 0.0) / jobs for name in ("CPU", "GPU")}
        remote: Any = ray.remote(
            num_cpus=max(1, int(share["CPU"])), num_gpus=_gpus(share["GPU"]), max_retries=0
        )(work)
        yield lambda task: remote.remote(task).future()
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nobody answers at ``host:port``; Ray would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _gpus(share: float) -> float:
    """Return whole GPUs where there are enough, else a part of one, as Ray takes it."""
    return float(int(share)) if share >= 1 else share
