"""A stand-in for Apple's MPS on any machine: a device of that name, without float64.

Tensors marked `on_mps` say that they are there, and so do those made of them, or asked for there.
What MPS refuses is refused here: float64, numpy, and arithmetic with tensors that are elsewhere.
The numbers are the CPU's.
"""

from __future__ import annotations

from typing import Any

import tiny
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel

CPU, MPS = torch.device("cpu"), torch.device("mps")
DEVICES = {"cpu": CPU, "mps": MPS}
# Functions that may be given tensors of both places, and those of them that count.
FIRST, LAST = slice(1), slice(-1, None)
DECISIVE = {
    torch.Tensor.to: LAST,
    torch.Tensor.copy_: FIRST,
    torch.Tensor.__getitem__: FIRST,
    torch.Tensor.__setitem__: FIRST,
}


def replacement(family: str, **sets: Any) -> ReplacementModel:
    """A tiny float32 model that is there; its transcoders stay in main memory, as from files."""
    net = tiny.model(family, torch.float32)
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.on_mps = True
    for module in net.modules():
        module.register_forward_pre_hook(_mask_there, with_kwargs=True)
    with Mps():
        adapter = Adapter(net, f"tiny {family}", torch.float32)
    made = tiny.transcoders(dtype=torch.float32, **sets)
    return ReplacementModel(adapter, tiny.tokenizer(), made)


def _mask_there(_module: Any, _args: tuple, kwargs: dict) -> None:
    """Older transformers make masks with vmap, which forgets where they are."""
    if isinstance(mask := kwargs.get("attention_mask"), torch.Tensor):
        mask.on_mps = True


class Mps(TorchFunctionMode):
    """Entered, there is such a device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return MPS if _there(args[0]) else func(*args)
        given = tree_leaves((args, kwargs))
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        if func is torch.Tensor.numpy and _there(args[0]):
            raise TypeError("numpy does not see tensors on mps")
        if func not in DECISIVE and len({_there(x) for x in tensors if x.ndim}) > 1:
            raise RuntimeError(f"{func.__name__}: tensors on mps and on cpu")
        named = [device for device in map(_device, given) if device is not None]
        if named or func is torch.Tensor.cpu:
            goes = MPS in named
        else:
            goes = any(map(_there, tensors[DECISIVE.get(func, slice(None))]))
        found = func(*tree_map(_real, args), **tree_map(_real, kwargs))

        def placed(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            if x.dtype == torch.float64 and (goes or any(map(_there, tensors))):
                raise TypeError("MPS has no float64")
            if _there(x) != goes:
                x = x.view_as(x) if any(x is one for one in tensors) else x
                x.on_mps = goes
            return x

        return tree_map(placed, found)


def _there(x: torch.Tensor) -> bool:
    return getattr(x, "on_mps", False)


def _device(x: Any) -> torch.device | None:
    return DEVICES.get(x) if isinstance(x, str) else x if isinstance(x, torch.device) else None


def _real(x: Any) -> Any:
    return CPU if _device(x) == MPS else x
