"""One forward pass of the real model, watched.

Attention patterns, norm denominators, MLP inputs and outputs are read off while the model runs as
it always does: our hooks only look, and they and our attention function are gone when the pass is
over, also after an error. `Forward` is what they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.errors import ModelError
from circuit_tracer.models.adapter import Adapter, Block, Norm
from circuit_tracer.models.attention import watched
from circuit_tracer.models.check import not_finite
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

NORMS = ("attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


@dataclass(frozen=True, eq=False)
class Forward:
    """What the real forward pass of one prompt left behind.

    Attributes:
        token_ids: (P,).
        patterns: a layer, (heads, P, P) attention pattern, [query, key].
        scales: a norm's 1/denominator: name → (L, P); names are `Block`'s norm fields.
        final_scale: (P,) of the final norm.
        tokens: (P, d_model) token embeddings as they enter the first block.
        positional: (P, d_model) learned position embeddings, zero where there are none.
        mlp_inputs: a layer, (P, d_model) at the transcoders' read site.
        mlp_outputs: a layer, (P, d_model) at the transcoders' write site.
        final: (P, d_model) output of the final norm.
        logits: (P, V) as the model returns them (soft-capped where it does).
    """

    token_ids: Int[Tensor, " position"]
    patterns: tuple[Float[Tensor, "head position position"], ...]
    scales: dict[str, Float[Tensor, "layer position"]]
    final_scale: Float[Tensor, " position"]
    tokens: Float[Tensor, "position d_model"]
    positional: Float[Tensor, "position d_model"]
    mlp_inputs: tuple[Float[Tensor, "position d_model"], ...]
    mlp_outputs: tuple[Float[Tensor, "position d_model"], ...]
    final: Float[Tensor, "position d_model"]
    logits: Float[Tensor, "position vocabulary"]


def run(adapter: Adapter, transcoders: TranscoderSet, ids: Int[Tensor, " position"]) -> Forward:
    """Pass token ids through the real model once and keep what tracing needs."""
    with torch.no_grad(), _Recorder(adapter) as record:
        output = adapter.model(input_ids=ids[None].to(adapter.device), use_cache=False)
        return record.forward(ids, output.logits[0], transcoders)


def run_abreast(
    adapter: Adapter, transcoders: TranscoderSet, ids: Int[Tensor, "prompt position"]
) -> Forward:
    """`run` for prompts of one length in one call: one `Forward` of all of them, in which position
    t of prompt b stands at place t · prompts + b, and patterns are (prompts · heads, P, P)."""
    with torch.no_grad(), _Recorder(adapter) as record:
        output = adapter.model(input_ids=ids.to(adapter.device), use_cache=False)
        return record.forward(ids.T.flatten(), _places(output.logits), transcoders)


def _places(x: Float[Tensor, "prompt position *rest"]) -> Float[Tensor, "place *rest"]:
    """Several prompts, position by position."""
    return x[0] if len(x) == 1 else x.transpose(0, 1).flatten(0, 1)


class _Recorder:
    """Forward hooks for the length of one `with` block."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self.seen: dict[str, Tensor] = {}
        self._stack: Any = None

    def __enter__(self) -> _Recorder:
        self._stack = self._recording()
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        adapter, handles = self.adapter, []

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, args: tuple, kwargs: dict, *_output: Any) -> None:
                self.seen[name] = _places(args[0] if args else kwargs["hidden_states"])

            return hook

        def keep_output(name: str) -> Callable[..., None]:
            def hook(_module: Any, _args: tuple, output: Any) -> None:
                self.seen[name] = _places(output[0] if isinstance(output, tuple) else output)

            return hook

        def before(module: Any, name: str) -> None:
            handles.append(module.register_forward_pre_hook(keep(name), with_kwargs=True))

        try:
            before(adapter.layers[0], "start")
            before(adapter.final_norm.module, "final_norm")
            before(adapter.unembedding, "final")
            if adapter.positions is not None:
                handles.append(adapter.positions.register_forward_hook(keep_output("positional")))
            for layer, block in enumerate(adapter.blocks):
                for name in NORMS:
                    norm: Norm | None = getattr(block, name)
                    if norm is not None:
                        before(norm.module, f"{name}.{layer}")
                before(block.mlp, f"mlp_in.{layer}")
                last = block.post_mlp_norm.module if block.post_mlp_norm else block.mlp
                handles.append(block.mlp.register_forward_hook(keep_output(f"mlp_raw.{layer}")))
                handles.append(last.register_forward_hook(keep_output(f"mlp_out.{layer}")))
            with watched(adapter.model) as self.patterns:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def forward(self, ids: Tensor, logits: Tensor, transcoders: TranscoderSet) -> Forward:
        """Gather what was seen, in the adapter's dtype and on its device."""
        adapter, seen = self.adapter, self.seen
        place: Any = {"device": adapter.device, "dtype": adapter.dtype}
        if not torch.isfinite(logits).all():
            raise ModelError(not_finite(adapter))
        blocks = list(enumerate(adapter.blocks))
        scales = {
            name: torch.stack(
                [getattr(b, name).scale(seen[f"{name}.{i}"]).to(**place) for i, b in blocks]
            )
            for name in NORMS
            if getattr(adapter.blocks[0], name) is not None
        }
        written = "mlp_raw" if transcoders.write == "mlp.hook_out" else "mlp_out"
        start = seen["start"].to(**place)
        positional = seen.get("positional", torch.zeros_like(start)).to(**place)
        positional = positional[0] if positional.ndim == 3 else positional
        if positional.ndim == 2:  # the same for all prompts
            positional = positional.repeat_interleave(len(start) // len(positional), dim=0)
        return Forward(
            token_ids=ids,
            patterns=tuple(self.patterns[id(b.attention)].to(**place) for _, b in blocks),
            scales=scales,
            final_scale=adapter.final_norm.scale(seen["final_norm"]).to(**place),
            tokens=start - positional,
            positional=positional.expand_as(start),
            mlp_inputs=tuple(_read_site(transcoders, b, seen, i).to(**place) for i, b in blocks),
            mlp_outputs=tuple(seen[f"{written}.{i}"].to(**place) for i, _ in blocks),
            final=seen["final"].to(**place),
            logits=logits.to(adapter.device),
        )


def _read_site(
    transcoders: TranscoderSet, block: Block, seen: dict[str, Tensor], layer: int
) -> Tensor:
    """Value at the transcoders' read site of a layer."""
    if transcoders.read == "mlp.hook_in" or block.mlp_norm is None:
        return seen[f"mlp_in.{layer}"]
    residual = seen[f"mlp_norm.{layer}"]
    if transcoders.read == "hook_resid_mid":
        return residual
    exact = residual.to(torch.promote_types(residual.dtype, torch.float32))
    return block.mlp_norm.centre(exact) * block.mlp_norm.scale(residual)[:, None]
