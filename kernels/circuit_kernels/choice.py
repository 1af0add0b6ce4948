"""Which form of a kernel runs: the only policy, and the only place that imports Triton forms.

`reference` is torch, everywhere. `triton` is Triton or an error, never a silent fallback. `auto`
is Triton on a CUDA device where Triton is installed, torch otherwise. Triton's interpreter
(`TRITON_INTERPRET=1`, set before the first import) runs the Triton forms on a CPU, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Literal, get_args

import torch

from circuit_kernels import edge_rows as reference

Choice = Literal["auto", "reference", "triton"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


def triton_problem(device: torch.device) -> str | None:
    """Why Triton cannot run on a device, in words; None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (Linux only)"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return (
        f"triton runs on CUDA devices, not on {device.type}; "
        "set TRITON_INTERPRET=1 for its (slow) interpreter"
    )


def edge_rows(choice: Choice, device: torch.device) -> Callable[..., None]:
    """The edge-rows kernel of a choice.

    Raises:
        ValueError: an unknown choice, or `triton` where Triton cannot run.
    """
    if choice not in CHOICES:
        raise ValueError(f"kernels must be one of {', '.join(CHOICES)}, not {choice!r}")
    problem = triton_problem(device)
    if choice == "reference" or (choice == "auto" and (problem or device.type != "cuda")):
        return reference.edge_rows
    if problem:
        raise ValueError(f"kernels='triton' cannot run: {problem}")
    from circuit_kernels import edge_rows_triton

    return edge_rows_triton.edge_rows
