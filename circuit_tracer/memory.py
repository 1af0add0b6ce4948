"""Memory: what there is, and what the parts of a run take before the sweep.

What is free is what the system would still give: of the machine, and of the control group (a
container, a batch job) the process runs in, whichever is less; on a GPU what its driver says.
Before the forward pass of a long prompt it is known already that its attention patterns alone take
layers x heads x positions^2; a prompt that cannot fit is refused before it is run. What a whole run
takes is an `Estimate`, which `estimate` makes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuit_kernels.encode import BLOCK_ELEMENTS
from circuit_tracer.errors import MemoryBudgetError
from circuit_tracer.local import Local
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.shapes import Tensor

GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and details of the control group, in versions 2 and 1."""

MASKS = 3
"""Bytes a pre-activation takes besides itself while it is compared."""
WRITE_COPIES = 3
"""Copies of a layer's decoder rows: read, scaled, and what tells whether they are finite."""
ATTENDING = 3
"""Copies of one layer's scores while the model attends: product, masked, softmax."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes, known after the forward pass and before the sweep.

    Attributes:
        n_positions, n_active, n_targets: size of the prompt and of its graph; `n_targets` counts
            the rows to attribute, targets included.
        flops: floating point operations that the rows need.
        seconds: wall time of the sweep, from chunks of it tried here and now.
        result_bytes: the rows.
        held_bytes: what the forward pass and the local model hold already.
        peak_bytes: at most at once above loading: forward pass, local model, rows and buffers.
        host_bytes: the rows again where the rest is on a GPU, which `peak_bytes` then is of: rows
            are kept in main memory. Else 0.
        keep: share of each row's absolute sum that is stored (`keep_edges`).
    """

    n_positions: int
    n_active: int
    n_targets: int
    flops: float
    seconds: float
    result_bytes: int
    held_bytes: int
    peak_bytes: int
    host_bytes: int = 0
    keep: float = 1.0

    def __str__(self) -> str:
        kept = ""
        if self.keep < 1:
            kept = f" (of each row the strongest edges that hold {self.keep:.3g} of it)"
        rows = f", {self.host_bytes / 2**20:,.0f} MiB of rows beside the GPU"
        return (
            f"{self.n_targets:,} rows over {self.n_active:,} active features and "
            f"{self.n_positions} tokens{kept}: {self.flops / 1e9:,.1f} GFLOP, about "
            f"{self.seconds:.1f} s, peak {self.peak_bytes / 2**20:,.0f} MiB above loading"
            f"{rows if self.host_bytes else ''}"
        )


def free(device: torch.device) -> float:
    """Bytes that can still be taken, as far as the system says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return float(most - torch.mps.driver_allocated_memory())
    return min(_machine(), *(_group(*(Path(name) for name in names)) for names in GROUPS))


def said(size: float) -> str:
    """A size in words: MiB below one GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float("inf")


def _group(limit: Path, used: Path, details: Path) -> float:
    """What a control group still gives; pages of files it can drop count as free."""
    try:
        most, now = float(limit.read_text()), float(used.read_text())
        fields = dict(line.split() for line in details.read_text().splitlines())
        return most - now + float(fields.get("inactive_file", 0))
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return float("inf")


def tensors(things: Iterable[Any]) -> int:
    """Bytes of the storages of all tensors among things, and in their lists, tuples and dicts."""
    found: dict[int, int] = {}
    pending = list(things)
    while pending:
        thing = pending.pop()
        if isinstance(thing, Tensor):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, dict):
            pending += thing.values()
        elif isinstance(thing, list | tuple):
            pending += thing
    return sum(found.values())


def held(local: Local) -> int:
    """Bytes that a local model, the forward pass it rests on and the folded weights hold."""
    return tensors([*vars(local).values(), *vars(local.forward).values()]) + folded(local.adapter)


def forward(adapter: Adapter, positions: int) -> int:
    """Bytes at the worst moment of a forward pass: all patterns, one layer's scores, logits."""
    item = adapter.dtype.itemsize
    attending = item * adapter.heads * positions**2
    residuals = 8 * adapter.n_layers * positions * adapter.d_model * item
    return (
        (adapter.n_layers + ATTENDING) * attending
        + residuals
        + 2 * item * positions * (adapter.vocabulary)
    )


def folded(adapter: Adapter) -> int:
    """Bytes of the attention weights as gradients meet them: value and output, of every layer, or
    of one at a time where weights are offloaded. An output projection that needs no folding is the
    model's own."""
    head = adapter.head_dim * adapter.d_model * adapter.dtype.itemsize
    if adapter.offloaded:
        return head * (adapter.kv_heads + adapter.heads)
    wanted = (adapter.dtype, adapter.device)
    weights = [next(block.attention.parameters()) for block in adapter.blocks]
    copied = sum(
        block.post_attention_norm is not None or (weight.dtype, weight.device) != wanted
        for block, weight in zip(adapter.blocks, weights, strict=True)
    )
    return head * (adapter.kv_heads * adapter.n_layers + adapter.heads * copied)


def taking_apart(local: Local) -> int:
    """Bytes while a prompt is taken apart: a block of pre-activations with its mask, or the decoder
    rows of a layer's features on their way to being write vectors."""
    item, positions = local.errors.element_size(), local.n_positions
    widest = max(len(local.transcoders.layer(n).encoder) for n in range(local.n_layers))
    encoding = min(positions * widest, max(BLOCK_ELEMENTS, positions)) * (item + MASKS)
    most = max(len(local.index.feature_rows(layer)) for layer in range(local.n_layers))
    return max(encoding, WRITE_COPIES * most * local.adapter.d_model * item)


def check_forward(adapter: Adapter, positions: int) -> None:
    """Raise MemoryBudgetError, naming a length that fits, where a prompt's forward pass does not.

    Args:
        positions: tokens of the prompt.
    """
    needed, spare = forward(adapter, positions), free(adapter.device)
    if needed <= spare:
        return
    low, high = 0, positions
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if forward(adapter, middle) <= spare else (low, middle)
    advice = f"{low:,} tokens fit" if low else "not even one token fits"
    raise MemoryBudgetError(
        f"the forward pass of {positions:,} tokens alone takes about {said(needed)} and "
        f"{said(spare)} are free; {advice}. Shorten the prompt, or take the weights out "
        "of the way with --offload cpu (or disk)"
    )
