"""Rows on their way from a GPU to main memory, while the GPU works on the next ones.

A graph of a hundred thousand features has some ten gigabytes of edges. Copying them as they come
would keep the GPU waiting, mostly for the operating system to hand out fresh pages. So they leave
on a stream of their own and are put down by a thread of their own, one block after the other, by
way of pinned memory, which the driver reaches without a copy of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from circuit_tracer.shapes import Float, Tensor

WAITING = 1 << 30
"""Bytes that may be on their way; beyond, whoever brings more waits."""


class Fetching:
    """Blocks on their way, in the order in which they were sent.

    Args:
        waiting: bytes on their way at most, but for a block that is larger by itself.
        copied: how a block comes to main memory, once it is complete on its device.
    """

    def __init__(
        self, waiting: int | None = None, copied: Callable[[Tensor], Tensor] | None = None
    ):
        self.waiting = WAITING if waiting is None else waiting
        self._copied = _Pinned() if copied is None else copied
        self._thread = ThreadPoolExecutor(1, "rows")
        self._sent: deque[tuple[int, Future[None]]] = deque()
        self._bytes = 0

    def send(
        self, values: Float[Tensor, "target source"], arrived: Callable[[Tensor], None]
    ) -> None:
        """Start to fetch a block.

        Args:
            values: of any device; kept alive until it has arrived.
            arrived: called with the block in main memory, by the other thread.
        """
        while self._sent and self._bytes + values.nbytes > self.waiting:
            self._next()
        ready = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

        def fetch() -> None:
            if ready is not None:
                ready.synchronize()
            arrived(self._copied(values))

        self._bytes += values.nbytes
        self._sent.append((values.nbytes, self._thread.submit(fetch)))

    def finish(self) -> None:
        """Wait until everything has arrived."""
        while self._sent:
            self._next()

    def _next(self) -> None:
        size, fetched = self._sent.popleft()
        self._bytes -= size
        fetched.result()


class _Pinned:
    """Copies by way of one pinned buffer, on a stream that waits for nobody."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, values: Tensor) -> Tensor:
        if self._stream is None:
            self._stream = torch.cuda.Stream(values.device)
        if self._buffer is None or len(self._buffer) < values.numel():
            self._buffer = torch.empty(values.numel(), dtype=values.dtype, pin_memory=True)
        there = self._buffer[: values.numel()].view(values.shape)
        with torch.cuda.stream(self._stream):
            there.copy_(values, non_blocking=True)
        self._stream.synchronize()
        return there.clone()
