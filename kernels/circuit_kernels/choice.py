"""Which form of a kernel runs: the only policy, and the only place that imports Triton forms.

`reference` is torch, everywhere. `triton` is Triton or an error, never a silent fallback. `auto`
is Triton on a CUDA device where Triton is installed, torch otherwise. Triton's interpreter
(`TRITON_INTERPRET=1`, set before the first import) runs the Triton forms on a CPU, for tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

Choice = Literal["auto", "reference", "triton"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

KERNELS = {
    "edge_rows": "edge_rows",
    "gathered_edge_rows": "edge_rows",
    "encode": "encode",
    "sparse_decode": "sparse_decode",
    "attention_mix": "attention_mix",
    "influence": "influence",
    "threshold_selection": "threshold_selection",
}
"""Every kernel, and the module it is in."""


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


def kernel(name: str, choice: Choice, device: torch.device) -> Callable[..., Any]:
    """One of `KERNELS` by name, in the form that a choice means on a device.

    Both forms take the same tensors; the Triton form may take more options.

    Raises:
        ValueError: an unknown name or choice, or `triton` where Triton cannot run.
    """
    if name not in KERNELS:
        raise ValueError(f"kernels are {', '.join(KERNELS)}; there is no {name!r}")
    if choice not in CHOICES:
        raise ValueError(f"kernels must be one of {', '.join(CHOICES)}, not {choice!r}")
    problem = triton_problem(device)
    form = f"circuit_kernels.{KERNELS[name]}"
    if choice == "triton" or (choice == "auto" and device.type == "cuda" and not problem):
        if problem:
            raise ValueError(f"kernels='triton' cannot run: {problem}")
        form += "_triton"
    return getattr(importlib.import_module(form), name)


def edge_rows(choice: Choice, device: torch.device) -> Callable[..., None]:
    """The edge-rows kernel of a choice; see `kernel`."""
    return kernel("edge_rows", choice, device)
