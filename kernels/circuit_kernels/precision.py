"""How float32 matrices are multiplied on CUDA devices: in float32 throughout, or in tf32.

torch knows three answers: what it was told, either way, and that nobody said. It takes the last
for float32 throughout, which data-centre cards do at a seventh of the rate, by their data sheets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def is_exact() -> bool:
    """Whether torch multiplies float32 in float32 throughout."""
    said = _said()
    return torch.get_float32_matmul_precision() == "highest" if said is None else said != "tf32"


@contextlib.contextmanager
def as_exact_as(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Inside, float32 products are tf32 where that is finer than `dtype`, unless torch was told.

    Args:
        dtype: number type that what is multiplied was computed in. float16 and bfloat16 have at
            most the ten bits of tf32.
        device: where; nothing happens elsewhere than on CUDA.

    `torch.set_float32_matmul_precision` and `torch.backends.cuda.matmul.fp32_precision` are heeded
    where they were set, and are as before afterwards. Before torch 2.9 it cannot be known whether
    they were: nothing happens.
    """
    if device.type != "cuda" or dtype.itemsize > 2 or _said() != "none":
        yield
        return
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def _said() -> str | None:
    """What torch was told: "tf32", "ieee" or "none"; None where it is too old to say."""
    return getattr(torch.backends.cuda.matmul, "fp32_precision", None)
