"""The processes of a training: how they split the work, and what they tell each other.

`torchrun` starts them and numbers them. Three splits:

    batch      each has the whole set and its share of the tokens; gradients are averaged
               (DistributedDataParallel)
    fsdp       likewise, but between steps each keeps its share of the weights and of Adam's
               moments only (fully_shard); weights are gathered for a step
    features   each has all the tokens and its share of every layer's features; what the shares
               write is summed

Whatever is decided by comparing (BatchTopK's level, TopK's choice, which features are dead) is
decided over all processes, so that a split training is the training of one process, to rounding.
A lone process is a `Ranks()`: everything here then leaves its argument as it is.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn

from circuit_tracer.errors import InputError
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.settings import Settings

Split = Literal["batch", "features", "fsdp"]
SPLITS: tuple[Split, ...] = get_args(Split)
PATIENCE = timedelta(hours=2)
"""How long a process waits for another: the first one writes and checks while others wait."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Attributes:
        number, count: which one, of how many.
        split: what they share out.
    """

    number: int = 0
    count: int = 1
    split: Split = "batch"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.number == 0

    @property
    def by_tokens(self) -> bool:
        """Whether every process has a share of the tokens."""
        return self.count > 1 and self.split != "features"

    @property
    def by_features(self) -> bool:
        """Whether every process has a share of the features."""
        return self.count > 1 and self.split == "features"

    @property
    def of_features(self) -> Ranks:
        """Itself where features are shared out, else alone: all of them are here."""
        return self if self.by_features else ALONE

    def check(self, settings: Settings) -> None:
        """Raise InputError for a training that cannot be shared out evenly."""
        name = "features" if self.by_features else "batch"
        given = getattr(settings, name)
        if self.count > 1 and given % self.count:
            nearest = -(-given // self.count) * self.count
            raise InputError(
                f"{name} {given} cannot be shared out evenly over {self.count} processes; "
                f"--{name} {nearest} can"
            )

    def features(self, whole: int) -> slice:
        """This process's features of a layer that has so many."""
        share = whole // self.count if self.by_features else whole
        start = self.number * share if self.by_features else 0
        return slice(start, start + share)

    def tokens(self, whole: int) -> int:
        """How many of a batch's first tokens are here, dealt out one by one."""
        return len(range(self.number, whole, self.count)) if self.by_tokens else whole

    def mean(self, here: Tensor) -> Tensor:
        """The mean over all processes' equal shares of the tokens."""
        return self.reduced(here) / self.count if self.by_tokens else here

    def per_token(self, here: Tensor) -> Tensor:
        """Counts a token: of all features here, of all tokens."""
        found = self.reduced(here)
        return found / self.count if self.by_tokens else found

    def reduced(self, here: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        found = here.detach().clone()
        if self.count > 1:
            dist.all_reduce(found)
        return found

    def anywhere(self, here: Tensor) -> Tensor:
        """Whether it holds in any process."""
        return self.reduced(here.int()) > 0 if self.count > 1 else here

    def total(self, here: Tensor) -> Tensor:
        """The sum over all processes' features; its gradient goes to every share as it is."""
        if not self.by_features:
            return here
        found: Tensor = _Sum.apply(here)
        return found

    def largest(
        self, values: Float[Tensor, "*rows value"], count: int
    ) -> Float[Tensor, "*rows kept"]:
        """The `count` largest along the last axis, of all processes' values."""
        kept = values.topk(min(count, values.shape[-1]), dim=-1, sorted=False).values
        if self.count == 1:
            return kept
        kept = nn.functional.pad(kept, (0, count - kept.shape[-1]), value=-torch.inf)
        return self._gathered(kept, -1).topk(count, dim=-1, sorted=False).values

    def whole(self, part: Tensor, axis: int | None) -> Tensor:
        """A tensor of which every process has a share; `axis` is that of the features, if any."""
        if hasattr(part, "full_tensor"):
            full: Tensor = part.full_tensor()
            return full
        return self._gathered(part, axis) if self.by_features and axis is not None else part

    def _gathered(self, part: Tensor, axis: int) -> Tensor:
        parts = [torch.empty_like(part.contiguous()) for _ in range(self.count)]
        dist.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts, axis)

    def told(self, what: Any) -> Any:
        """What the first process says, in all of them."""
        if self.count == 1:
            return what
        said = [what]
        dist.broadcast_object_list(said)
        return said[0]

    def reports(self, what: Any) -> list[Any]:
        """What each process says, by number."""
        if self.count == 1:
            return [what]
        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, what)
        return said


class _Sum(torch.autograd.Function):
    """A sum over processes, each of which takes the whole loss's gradient for its own summand."""

    @staticmethod
    def forward(_ctx: Any, here: Tensor) -> Tensor:
        found = here.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


ALONE = Ranks()


class _Step(nn.Module):
    """What is wrapped: a network whose forward pass is the losses of a batch."""

    def __init__(self, net: nn.Module, losses: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.losses = net, losses

    def forward(self, inputs: Tensor, wanted: Tensor) -> Any:
        return self.losses(inputs, wanted)


def wrapped(
    net: nn.Module, losses: Callable[..., Any], ranks: Ranks, device: torch.device
) -> Callable[..., Any]:
    """`losses`, such that backward leaves the mean gradient of all processes' tokens.

    With `fsdp` the parameters of `net` are other ones afterwards, each a share.
    """
    if not ranks.by_tokens:
        return losses
    step = _Step(net, losses)
    if ranks.split == "batch":
        places = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(step, device_ids=places)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(step, mesh=init_device_mesh(device.type, (ranks.count,)))
    return step


def dealt(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what this process keeps: a share where `like` is one (see `wrapped`)."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements)


def clipped(
    shared: Sequence[nn.Parameter],
    split: Sequence[nn.Parameter],
    clip: float | None,
    ranks: Ranks,
) -> Tensor:
    """The norm of the whole gradient, which is clipped to `clip` where that is given.

    Args:
        shared: parameters that every process has.
        split: those of which it has a share of the features.
    """
    utils = torch.nn.utils
    parameters = [p for p in (*shared, *split) if p.grad is not None]
    norm = utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if ranks.by_features:
        common, own = (
            utils.get_total_norm([p.grad for p in part if p.grad is not None]).square()
            for part in (shared, split)
        )
        norm = (common + ranks.reduced(own)).sqrt()
    if clip is not None:
        utils.clip_grads_with_norm_(parameters, clip, norm)
    return ranks.whole(norm, None)


@contextmanager
def joined(split: Split, device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """(this process among those that torchrun started, its device); alone where it started none.

    A group's threads end with its last reference. One that still lets go of a tensor while Python
    shuts down aborts the process, after its work is done. Two things kept references: PyTorch's
    functional collectives take the group of the moment they are imported as their default, and the
    optimiser imports them; a trainer and what wraps its network refer to each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), split), device
    finally:
        gc.collect()
        dist.destroy_process_group()
