"""One forward pass of the real model with features changed.

The model's own modules run. Hooks add `(new − old) · decoder row` where transcoders write, on top
of the true MLP output, so that what transcoders do not explain stays as it is. What is held, is
held at the clean pass: attention patterns, MLP outputs of some layers, norm denominators. With
everything held the pass is linear in the change (docs/maths.md); with nothing held, old values are
read off the changed pass itself. A cross-layer feature is read once, at its own layer, and its
change written to every later one.

Hooks and attention function are gone when the pass is over, also after an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from circuit_tracer.changes import Clean, Edit, activations
from circuit_tracer.forward import NORMS, Forward
from circuit_tracer.models.adapter import Adapter, Norm
from circuit_tracer.models.attention import watched
from circuit_tracer.models.held import held
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet


@dataclass(frozen=True)
class Hold:
    """What stays as it was on the clean pass.

    Attributes:
        mlps: layers whose MLP outputs are clean + change. Where there are any, changes are
            relative to clean activations and written to these layers only.
        patterns: attention patterns.
        norms: denominators of all norms.
    """

    mlps: frozenset[int] = frozenset()
    patterns: bool = False
    norms: bool = False


@dataclass(frozen=True, eq=False)
class Seen:
    """What a changed pass left behind.

    Attributes:
        sites: a layer, (B, P, d_model) at the transcoders' read site.
        logits: (B, P, V).
    """

    sites: tuple[Float[Tensor, "batch position d_model"], ...]
    logits: Float[Tensor, "batch position vocabulary"]


def run_patched(
    adapter: Adapter, clean: Clean, batch: Sequence[Sequence[Edit]], hold: Hold
) -> Seen:
    """One forward pass of B copies of a prompt, each with its own edits."""
    patch = Patch(adapter, clean.transcoders, batch)
    if hold.mlps:
        _write_ahead(patch, clean, hold.mlps)
    ids = clean.forward.token_ids[None].to(adapter.device).expand(len(batch), -1)
    with torch.no_grad(), patch.applied(clean.forward, hold):
        logits = adapter.model(input_ids=ids, use_cache=False).logits
    return Seen(tuple(patch.sites[layer] for layer in range(adapter.n_layers)), logits)


def _write_ahead(patch: Patch, clean: Clean, layers: frozenset[int]) -> None:
    """Everything the edits write, relative to clean activations, to some layers only."""
    for layer in patch.layers:
        old = clean.activations(layer)
        for number in range(len(patch.batch)):
            patch.write(layer, number, old, layers)


@dataclass(eq=False)
class Patch:
    """Edits on their way into a forward pass.

    Attributes:
        batch: the edits of each copy of the prompt.
        sites: filled by the pass: layer → (B, P, d_model) at the read site.
        pending: what is still to be added: layer → (B, P, d_model) at the write site.
    """

    adapter: Adapter
    transcoders: TranscoderSet
    batch: Sequence[Sequence[Edit]]
    sites: dict[int, Tensor] = field(default_factory=dict)
    pending: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._edits: dict[tuple[int, int], list[Edit]] = defaultdict(list)
        for number, edits in enumerate(self.batch):
            for edit in edits:
                self._edits[edit.layer, number].append(edit)

    @property
    def layers(self) -> set[int]:
        """Layers whose features are changed."""
        return {layer for layer, _ in self._edits}

    def write(
        self,
        layer: int,
        number: int,
        old: Float[Tensor, "position feature"],
        allowed: frozenset[int] | None = None,
    ) -> None:
        """Put what the edits of one copy and layer write in `pending`, given its activations."""
        edits = self._edits.get((layer, number))
        if not edits:
            return
        cells = [
            (position, edit.feature, edit.scale, edit.offset)
            for edit in edits
            for position in (range(len(old)) if edit.position is None else (edit.position,))
        ]
        positions, features = torch.tensor([cell[:2] for cell in cells], device=old.device).T
        scale, offset = old.new_tensor([cell[2:] for cell in cells]).T
        before = old[positions, features]
        change = scale * before + offset - before
        for offset_, _ in enumerate(self.transcoders.layer(layer).decoders):
            written = layer + offset_
            if allowed is None or written in allowed:
                self._add(written, number, positions, features, change, layer, len(old))

    def _add(
        self,
        written: int,
        number: int,
        positions: Int[Tensor, " cell"],
        features: Int[Tensor, " cell"],
        change: Float[Tensor, " cell"],
        layer: int,
        length: int,
    ) -> None:
        if written not in self.pending:
            shape = (len(self.batch), length, self.adapter.d_model)
            self.pending[written] = change.new_zeros(shape)
        rows = self.transcoders.decoder_rows(layer, written, features.cpu(), change.dtype)
        added = rows.to(change.device) * change[:, None]
        self.pending[written][number].index_add_(0, positions, added)

    @contextmanager
    def applied(self, forward: Forward | None = None, hold: Hold | None = None) -> Iterator[None]:
        """While inside, the model's forward passes are changed.

        Args:
            forward: the clean pass, wherever something is held.
            hold: what is; None holds nothing and leaves the model its attention function.
        """
        with ExitStack() as stack:
            patterns = None
            if hold is not None and hold.patterns:
                assert forward is not None
                modules = (id(block.attention) for block in self.adapter.blocks)
                patterns = dict(zip(modules, forward.patterns, strict=True))
            self._hook(stack, forward, hold or Hold())
            if patterns is not None:
                stack.enter_context(held(self.adapter.model, patterns))
            elif hold is not None:
                stack.enter_context(watched(self.adapter.model))
            yield

    def _hook(self, stack: ExitStack, forward: Forward | None, hold: Hold) -> None:
        after = self.transcoders.write == "hook_mlp_out"
        for layer, block in enumerate(self.adapter.blocks):
            if hold.norms:
                assert forward is not None
                for name in NORMS:
                    if (norm := getattr(block, name)) is not None:
                        _hold_norm(stack, norm, forward.scales[name][layer])
            norm = block.mlp_norm if self.transcoders.read != "mlp.hook_in" else None
            read = block.mlp if norm is None else norm.module
            look = self._reader(layer, norm, forward if hold.norms else None)
            stack.callback(read.register_forward_pre_hook(look, with_kwargs=True).remove)
            post = block.post_mlp_norm if after else None
            site = block.mlp if post is None else post.module
            clean = forward if layer in hold.mlps else None
            stack.callback(site.register_forward_hook(self._writer(layer, clean, hold)).remove)
        if hold.norms:
            assert forward is not None
            _hold_norm(stack, self.adapter.final_norm, forward.final_scale)

    def _reader(self, layer: int, norm: Norm | None, frozen: Forward | None) -> Callable:
        """A hook that keeps the value at the read site of a layer."""

        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else kwargs["hidden_states"]).to(self.adapter.device)
            if norm is not None and self.transcoders.read == "ln2.hook_normalized":
                scale = norm.scale(x) if frozen is None else frozen.scales["mlp_norm"][layer]
                x = norm.centre(x.to(scale.dtype)) * scale[..., None]
            self.sites[layer] = x.to(self.adapter.dtype)

        return hook

    def _writer(self, layer: int, clean: Forward | None, hold: Hold) -> Callable:
        """A hook that changes the value at the write site of a layer, held where `clean`."""

        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            if not hold.mlps and layer in self.layers:
                for number, site in enumerate(self.sites[layer]):
                    if (layer, number) in self._edits:
                        self.write(layer, number, activations(self.transcoders, layer, site))
            change = self.pending.pop(layer, None)
            if clean is None and change is None:
                return None
            first = output[0] if isinstance(output, tuple) else output
            result = first if clean is None else self._held_output(layer, clean)
            if change is not None:
                result = result.to(change) + change
            result = result.to(first).expand_as(first)
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return hook

    def _held_output(self, layer: int, clean: Forward) -> Float[Tensor, "... position d_model"]:
        """The clean output of a layer, with what a skip connection passes on of the change."""
        skip = self.transcoders.layer(layer).skip
        if skip is None:
            return clean.mlp_outputs[layer]
        moved = self.sites[layer] - clean.mlp_inputs[layer]
        return clean.mlp_outputs[layer] + moved @ skip.to(moved).T


def _hold_norm(stack: ExitStack, norm: Norm, scale: Float[Tensor, " position"]) -> None:
    """Hold a norm's denominator while the stack lasts."""

    def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        x = (args[0] if args else kwargs["hidden_states"]).to(scale)
        result = norm.centre(x) * scale[:, None] * norm.weight
        return (result if norm.bias is None else result + norm.bias).to(output)

    stack.callback(norm.module.register_forward_hook(hook, with_kwargs=True).remove)
