"""Work on many machines, by Ray: who does it, and what happens when a worker dies.

A `Crew` is a number of workers (Ray actors), each of which makes its state once (a model, say) and
then does one item of work after another. Every item is given to one worker at a time and its
result handed out once. A worker that dies is replaced and its item given to another; an item that
outlives no worker is handed out as `Lost`, and the rest goes on. At any time there are as many
items under way as workers, and results are in memory only until they are handed out.

Ray is an extra, and is imported here and nowhere else, when a crew is wanted.
"""

from __future__ import annotations

import importlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuit_tracer.errors import CircuitTracerError, InputError

State = TypeVar("State")
Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")

TRIES = 3
"""Workers that may die of one item, or in a row while they start, before it is given up."""
REACHED, PATIENCE, WAITED = 5.0, 600.0, 1.0
"""Seconds to wait for an address, for the first worker to be ready, and between two looks."""


@dataclass(frozen=True)
class Lost:
    """What became of an item whose workers died, in words."""

    reason: str


class _Worker:
    """One of a crew; Ray makes an actor of it."""

    def __init__(self, make: Callable[[], Any], home: str):
        self.make, self.home = make, home
        self.state: Any = None

    def ready(self) -> None:
        """Make the state: here, and not when the actor is made, so that errors come back whole."""
        if os.path.isdir(self.home):
            os.chdir(self.home)
        self.state = self.make()

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(self.state, *given)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The `ray` module, connected; a connection that was there already is used, and left open.

    Args:
        address: "auto" for the cluster that this machine belongs to, or for one of this machine
            alone where it belongs to none; or HOST:PORT, or ray://HOST:PORT.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """
    ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    place = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    _reach(place)
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if place == "auto":
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address=place, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot join the Ray cluster at {place}: {_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            "working on a cluster needs Ray: pip install 'trace-circuits[ray]', here and on every "
            "machine of the cluster"
        ) from error


def _reach(place: str) -> None:
    """Raise InputError where nothing listens; Ray itself may end the process then."""
    if place in ("auto", "local"):
        return
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise InputError(
            f"{place!r} is not the address of a Ray cluster: give auto, HOST:6379 as `ray start` "
            "says it, or ray://HOST:10001"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"nothing answers at {place} ({_line(error)}): is the cluster up (`ray status` there), "
            "and may this machine reach it?"
        ) from error


def shares(
    machines: Sequence[Mapping[str, float]], workers: int | None, gpu: bool
) -> tuple[int, dict[str, float]]:
    """How many workers there are to be, and what Ray is to set aside for each.

    Args:
        machines: "CPU" and "GPU" of each.
        workers: as many as asked for; None for one a GPU, or one a machine without.
        gpu: whether they may use GPUs.

    Raises:
        InputError: there is no room for so many.
    """
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    cores = [count for count in cores if count]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines)) if gpu else 0
    size = workers or gpus or len(cores)
    if size > sum(cores) or not cores:
        raise InputError(
            f"{max(size, 1)} workers need as many cores, and the cluster has {sum(cores)}: ask for "
            "fewer (--workers)"
        )
    if gpus:  # rounded down, so that as many fit on a GPU as should
        part = 1.0 if size <= gpus else math.floor(1e4 / math.ceil(size / gpus)) / 1e4
        return size, {"num_cpus": 1, "num_gpus": part}
    each = min(cores) // math.ceil(size / len(cores))
    return size, {"num_cpus": max(1, each), "num_gpus": 0}


@dataclass(eq=False)
class _Call:
    """Work for one worker, and how many died of it."""

    function: Callable[..., Any]
    given: tuple[Any, ...]
    deaths: int = 0


class Crew(Generic[State]):
    """Workers that each hold a state.

    Args:
        ray: from `connected`.
        make: makes the state, on the worker, in the folder this process is in where there is one
            of that name. What it is made of must be there too: this package, files.
        workers: how many; None for one a GPU, or one a machine where no GPU is to be used.
        gpu: whether workers use GPUs where the cluster has any; several may share one.

    Raises:
        InputError: a cluster without room for so many.
    """

    def __init__(
        self, ray: Any, make: Callable[[], State], workers: int | None = None, gpu: bool = True
    ):
        self.ray, self.make = ray, make
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.size, needs = shares(machines, workers, gpu)
        self.actor = ray.remote(_Worker).options(
            max_restarts=0, scheduling_strategy="SPREAD", **needs
        )
        errors = ray.exceptions
        self.fatal = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        )
        self.busy: dict[Any, tuple[Any, _Call | None]] = {}
        """Reference → worker and what it does; None while it makes its state."""
        self.idle: list[Any] = []
        self.stillborn, self.since = 0, time.monotonic()

    def __enter__(self) -> Crew[State]:
        for _ in range(self.size):
            self._hire()
        return self

    def __exit__(self, *error: object) -> None:
        for worker in (*self.idle, *(worker for worker, _ in self.busy.values())):
            self.ray.kill(worker)

    def ask(self, question: Callable[[State], Answer]) -> Answer:
        """What a worker says of its state, as soon as one is ready."""
        _, answer = next(self._done(iter([_Call(question, ())])))
        if isinstance(answer, Lost):
            raise CircuitTracerError(answer.reason)
        return answer

    def each(
        self, work: Callable[[State, Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | Lost]]:
        """Every item with what `work` made of it, in the order in which they are done.

        Raises:
            CircuitTracerError: no worker can be had.
            Exception: what `work` raised, or what made the state.
        """
        for call, result in self._done(_Call(work, (item,)) for item in items):
            yield call.given[0], result

    def _done(self, calls: Iterator[_Call]) -> Iterator[tuple[_Call, Any]]:
        again: list[_Call] = []
        while True:
            self._give(again, calls)
            if not again and all(call is None for _, call in self.busy.values()) and self.idle:
                return
            reference = self._waited()
            worker, call = self.busy.pop(reference)
            result = self._result(reference, worker, call)
            if call is None:
                continue
            if isinstance(result, Lost) and call.deaths < TRIES:
                again.append(call)
                continue
            self._give(again, calls)  # so that the worker goes on while the result is looked at
            yield call, result

    def _give(self, again: list[_Call], calls: Iterator[_Call]) -> None:
        """Work to every idle worker, as long as there is any."""
        while self.idle and (call := again.pop() if again else next(calls, None)):
            worker = self.idle.pop()
            self.busy[worker.call.remote(call.function, *call.given)] = worker, call

    def _result(self, reference: Any, worker: Any, call: _Call | None) -> Any:
        """What came of a call; the worker is idle then, or another is in its place."""
        try:
            found = self.ray.get(reference)
        except self.fatal as error:
            self.ray.kill(worker)
            if call is None:
                self.stillborn += 1
            else:
                call.deaths += 1
            if self.stillborn == TRIES:
                raise CircuitTracerError(
                    f"{TRIES} workers died while they were starting, the last one so: "
                    f"{_line(error)}. Has every machine this package, and memory for the model?"
                ) from error
            self._hire()
            return Lost(f"{TRIES} workers died of it, the last one so: {_line(error)}")
        except self.ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        self.stillborn = 0
        self.idle.append(worker)
        return found

    def _waited(self) -> Any:
        """A reference that is done."""
        while True:
            done, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=WAITED)
            if done:
                return done[0]
            starting = not self.idle and all(call is None for _, call in self.busy.values())
            if starting and time.monotonic() - self.since > PATIENCE:
                raise CircuitTracerError(
                    f"no worker was ready within {PATIENCE:.0f} s: the cluster has no room for "
                    "them (`ray status` tells), or they take that long to load the model"
                )

    def _hire(self) -> None:
        worker = self.actor.remote(self.make, os.getcwd())
        self.busy[worker.ready.remote()] = worker, None
        self.since = time.monotonic()


def _line(error: BaseException) -> str:
    """What an error says, in a line: the cause, where Ray tells how a worker came to fail."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "creation task" in lines[0] else lines[0]
