"""What a launch depends on besides its tensors: the card, its tile sizes, and torch's precision.

Tile sizes are a table, not a search at run time: tuning a kernel in every process would take longer
than the graph it is for, and could give other bits each time. `kernels/bench/bench_gpu.py --tune`
times the candidates on the card at hand and says which to put here. The depth of a sum (WIDTH,
DEPTH) is the same in all of a table, so whichever is chosen adds in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from circuit_kernels.precision import is_exact

Tiles = Mapping[str, int]


def _tiles(names: str, sizes: Sequence[int], warps: int, stages: int) -> Tiles:
    return {
        **dict(zip(names.split(), sizes, strict=True)),
        "num_warps": warps,
        "num_stages": stages,
    }


EDGE, CODE, MIX = "SOURCES TARGETS WIDTH", "POSITIONS FEATURES WIDTH", "KEYS COLUMNS DEPTH"

CANDIDATES: dict[str, tuple[Tiles, ...]] = {
    "edge_rows": (
        _tiles(EDGE, (64, 64, 32), 4, 3),
        _tiles(EDGE, (64, 128, 32), 4, 3),
        _tiles(EDGE, (64, 128, 32), 8, 4),
        _tiles(EDGE, (64, 256, 32), 8, 3),
        _tiles(EDGE, (128, 128, 32), 8, 3),
    ),
    "encode": (
        _tiles(CODE, (32, 128, 64), 4, 3),
        _tiles(CODE, (64, 128, 64), 4, 3),
        _tiles(CODE, (64, 128, 64), 8, 3),
        _tiles(CODE, (64, 64, 64), 8, 3),
        _tiles(CODE, (32, 64, 64), 4, 3),
    ),
    "attention_mix": (
        _tiles(MIX, (64, 128, 32), 4, 3),
        _tiles(MIX, (64, 128, 32), 8, 3),
        _tiles(MIX, (64, 64, 32), 8, 4),
        _tiles(MIX, (32, 128, 32), 4, 3),
    ),
    "sparse_decode": (
        _tiles("ROWS WIDTH", (16, 256), 4, 2),
        _tiles("ROWS WIDTH", (16, 128), 4, 2),
        _tiles("ROWS WIDTH", (16, 512), 8, 2),
    ),
    "influence": (
        _tiles("ROWS COLUMNS", (16, 256), 4, 2),
        _tiles("ROWS COLUMNS", (16, 128), 4, 2),
        _tiles("ROWS COLUMNS", (16, 512), 8, 2),
    ),
    "threshold_selection": (
        _tiles("ENTRIES", (512,), 4, 2),
        _tiles("ENTRIES", (1024,), 8, 2),
        _tiles("ENTRIES", (256,), 4, 2),
    ),
}

# Place in CANDIDATES of what each class of card runs, the first where none is named: so far by
# what fits into registers and shared memory (100 KiB on consumer cards) once it is compiled, also
# where a number of positions that sixteen does not divide makes addresses many; not by time.
CHOSEN: dict[str, dict[str, int]] = {
    "sm_80": {"edge_rows": 2, "encode": 2, "attention_mix": 2},
    "sm_90": {"edge_rows": 2, "encode": 3, "attention_mix": 1},
    "consumer": {"encode": 4, "attention_mix": 2},
}

# float32 products without tensor cores ("ieee"), which torch's default precision asks for: every
# thread multiplies for itself, and deeper or longer tiles overrun its registers. The first runs.
EXACT: dict[str, tuple[Tiles, ...]] = {
    "edge_rows": (_tiles(EDGE, (64, 128, 16), 8, 3), _tiles(EDGE, (64, 64, 16), 4, 3)),
    "encode": (_tiles(CODE, (64, 128, 16), 8, 3), _tiles(CODE, (64, 64, 16), 8, 3)),
    "attention_mix": (_tiles(MIX, (64, 64, 16), 8, 3), _tiles(MIX, (64, 128, 16), 8, 3)),
}

# float64 products: twice the bytes and the registers, so small tiles.
DOUBLE: dict[str, tuple[Tiles, ...]] = {
    "edge_rows": (_tiles(EDGE, (32, 32, 32), 4, 2),),
    "encode": (_tiles(CODE, (16, 32, 32), 4, 2),),
    "attention_mix": (_tiles(MIX, (32, 32, 32), 4, 2),),
}

# Small, so that small tensors have several tiles and a ragged end.
INTERPRETER: dict[str, Tiles] = {
    "edge_rows": {"SOURCES": 32, "TARGETS": 32, "WIDTH": 32},
    "encode": {"POSITIONS": 16, "FEATURES": 32, "WIDTH": 32},
    "attention_mix": {"KEYS": 16, "COLUMNS": 32, "DEPTH": 16},
    "sparse_decode": {"ROWS": 4, "WIDTH": 32},
    "influence": {"ROWS": 4, "COLUMNS": 32},
    "threshold_selection": {"ENTRIES": 64},
}


def card(device: torch.device) -> str:
    """Class of a device in `CHOSEN`; "interpreter" where there is no CUDA device."""
    if device.type != "cuda":
        return "interpreter"
    name = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    return name if name in CHOSEN else "consumer"


def candidates(
    kernel: str, dtype: torch.dtype = torch.float32, exact: bool | None = None
) -> tuple[Tiles, ...]:
    """What a kernel may run with on a GPU.

    Args:
        dtype: of what is multiplied; of no matter where nothing is.
        exact: as in `precision`.
    """
    if dtype == torch.float64 and kernel in DOUBLE:
        return DOUBLE[kernel]
    if dtype == torch.float32 and kernel in EXACT and precision(exact) == "ieee":
        return EXACT[kernel]
    return CANDIDATES[kernel]


def chosen(
    kernel: str, card: str, dtype: torch.dtype = torch.float32, exact: bool | None = None
) -> Tiles:
    """Tile sizes, warps and stages of a kernel on a class of card; see `candidates`."""
    found = candidates(kernel, dtype, exact)
    return found[CHOSEN[card].get(kernel, 0) if found is CANDIDATES[kernel] else 0]


def tiles(
    kernel: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    exact: bool | None = None,
) -> Tiles:
    """Tile sizes, and on a GPU warps and stages, of a kernel on a device; see `candidates`."""
    found = card(device)
    if found == "interpreter":
        return INTERPRETER[kernel]
    return chosen(kernel, found, dtype, exact)


def precision(exact: bool | None) -> str:
    """How float32 products are made: "ieee" or "tf32".

    Args:
        exact: None does as torch's own products do.
    """
    return "ieee" if (is_exact() if exact is None else exact) else "tf32"


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Launches go to the current CUDA device: make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@lru_cache(maxsize=4096)
def offsets(starts: tuple[int, ...], device: torch.device) -> Tensor:
    """Offsets as an int64 tensor on a device; a sweep asks for the same few again and again."""
    return torch.tensor(starts, dtype=torch.int64, device=device)
