"""What the kernel tests share: both forms of a kernel, devices, and the largest error allowed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from circuit_kernels import choice

# Largest error allowed against float64, relative to the largest entry.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = ("reference", "triton")
# In the interpreter tl.dot of bfloat16 gives garbage and precision is ignored: bf16 and tf32 are
# tested on a GPU only.
ON_A_GPU = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)


def form(name: str, which: str, device: str = DEVICE) -> Callable:
    """A kernel in one of `FORMS`; the test is skipped where Triton cannot run."""
    problem = choice.triton_problem(torch.device(device))
    if which == "triton" and problem:
        pytest.skip(problem)
    return choice.kernel(name, which, torch.device(device))


def offsets(counts: list[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)]


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def framed(content: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a buffer of NaN, a strided window into it that holds `content`)."""
    margin = [side + 5 for side in content.shape]
    buffer = torch.full(margin, torch.nan, dtype=content.dtype, device=content.device)
    window = buffer[tuple(slice(2, 2 + side) for side in content.shape)]
    window.copy_(content)
    return buffer, window


def laid_out(content: torch.Tensor, *axes: int) -> torch.Tensor:
    """The same tensor, in memory with its axes in this order, the last one contiguous."""
    back = [axes.index(axis) for axis in range(len(axes))]
    return content.permute(axes).contiguous().permute(back)


def close(found: torch.Tensor, truth: torch.Tensor, tolerance: float) -> None:
    """Within `tolerance` of a float64 truth, relative to its largest entry; NaN is never close."""
    scale = float(truth.abs().max()) if truth.numel() else 1.0
    torch.testing.assert_close(found.double(), truth.double(), atol=tolerance * scale, rtol=0)
