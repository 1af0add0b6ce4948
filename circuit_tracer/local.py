"""The local replacement model of one prompt.

MLP outputs are taken apart into features, errors and constants, attention patterns and norm
denominators are frozen at what the forward pass saw. It has the real model's very activations and
logits, and between two of its sites everything is linear: `attribute` reads edges off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from circuit_kernels.choice import Choice
from circuit_tracer.errors import TranscoderError
from circuit_tracer.forward import Forward
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

KEPT = {"cuda": 12 << 30}
"""Bytes of write vectors that are kept, by type of device; of a long prompt they would take most of
a GPU. Those beyond are read from the decoders again each time."""


class Local:
    """The local replacement model of one prompt: real activations, linear between its sites.

    All vectors live in the residual stream: where transcoders write before a post-MLP norm, that
    norm (frozen) is already applied.

    Attributes:
        features: (n_features, 3) int64 rows (layer, position, id), in node order.
        index: their order; without targets, which are nobody's business here.
        activations: (n_features,).
        errors: (L, P, d_model) true MLP output − reconstruction; zero at ignored positions.
        ignored: (L, P, d_model) features and errors at ignored positions; zero elsewhere.
        constants: (L, P, d_model) what the MLP site adds whatever the input: b_dec, norm biases.
        attention_constants: (L, P, d_model) likewise for the attention site.
        patterns: a layer, (heads, P, P) pattern with both norms' scales folded in.
        ignored_positions: as asked.

    Where the forward pass is `owned`, scales are folded into its own patterns, which can be most of
    what there is in memory: `forward.patterns` is empty afterwards.
    """

    def __init__(
        self,
        adapter: Adapter,
        transcoders: TranscoderSet,
        forward: Forward,
        ignored: Sequence[int] = (0,),
        owned: bool = False,
        kernels: Choice = "auto",
    ):
        self.adapter, self.transcoders, self.forward = adapter, transcoders, forward
        self.ignored_positions = tuple(sorted(set(ignored)))
        self.n_layers, self.n_positions = adapter.n_layers, len(forward.token_ids)
        self._writes: dict[tuple[int, int], Tensor] = {}
        self._kept = 0
        self._encode(kernels)
        self._split_outputs()
        self._freeze_attention(owned)

    def _encode(self, kernels: Choice) -> None:
        """Active features of every layer, but for those at ignored positions."""
        kept = torch.ones(self.n_positions, dtype=torch.bool)
        kept[[p for p in self.ignored_positions if p < self.n_positions]] = False
        self.kept_positions = kept
        cells, values = [], []
        for layer, x in enumerate(self.forward.mlp_inputs):
            found, value = self.transcoders.encode(layer, x, kernels)
            found = found.cpu()
            wanted = kept[found[:, 0]]
            layers = torch.full((int(wanted.sum()), 1), layer)
            cells.append(torch.cat([layers, found[wanted]], dim=1))
            values.append(value[wanted.to(value.device)])
        self.features = torch.cat(cells)
        self.activations = torch.cat(values)
        no_targets = torch.empty(0, dtype=torch.long)
        self.index = NodeIndex(self.features, self.n_layers, self.n_positions, no_targets)

    def writes(self, source: int, layer: int) -> Float[Tensor, "active d_model"]:
        """Write vectors of the features of layer `source` into layer `layer`: activation × row.

        Read once and kept, as far as there is room for them (`KEPT`).
        """
        if (source, layer) in self._writes:
            return self._writes[source, layer]
        found = self._read_writes(source, layer)
        if self._kept + found.nbytes <= KEPT.get(found.device.type, float("inf")):
            self._writes[source, layer] = found
            self._kept += found.nbytes
        return found

    def _read_writes(self, source: int, layer: int) -> Tensor:
        rows = self.index.feature_rows(source)
        part = self.features[rows.start : rows.stop]
        table = self.transcoders.decoder_rows(source, layer, part[:, 2], self.adapter.dtype)
        table = table.to(self.activations.device)
        table = table * self.activations[rows.start : rows.stop, None]
        table = self._to_residual(layer, table, part[:, 1])
        return table if table.is_cuda else table.T.contiguous().T  # as products on a CPU like it

    def _to_residual(self, layer: int, vectors: Tensor, positions: Tensor) -> Tensor:
        """Carry vectors from the write site through the frozen post-MLP norm."""
        norm = self.adapter.blocks[layer].post_mlp_norm
        if self.transcoders.write == "hook_mlp_out" or norm is None:
            return vectors
        scale = self.forward.scales["post_mlp_norm"][layer][positions]
        return norm.centre(vectors) * norm.weight * scale[:, None]

    def _split_outputs(self) -> None:
        """Error, ignored and constant part of every MLP output; the rest is features."""
        shape = (self.n_layers, self.n_positions, self.adapter.d_model)
        self.errors = self.forward.tokens.new_zeros(shape)
        self.ignored = torch.zeros_like(self.errors)
        self.constants = torch.zeros_like(self.errors)
        everywhere = torch.arange(self.n_positions)
        kept = self.kept_positions.to(self.errors.device)[:, None]
        for layer, output in enumerate(self.forward.mlp_outputs):
            weights = self.transcoders.layer(layer)
            bias = weights.output_bias.to(output).expand_as(output)
            passed = bias
            if weights.skip is not None:
                passed = bias + self.forward.mlp_inputs[layer] @ weights.skip.to(output).T
            if not torch.isfinite(passed).all():
                raise TranscoderError(
                    f"the output bias or skip of layer {layer} in {self.transcoders.name} holds "
                    "NaN or infinite values. Re-download or re-train the transcoders."
                )
            missing = self._to_residual(layer, output - passed, everywhere)
            for source in self.transcoders.writers(layer):
                rows = self.index.feature_rows(source)
                positions = self.features[rows.start : rows.stop, 1].to(missing.device)
                missing.index_add_(0, positions, self.writes(source, layer), alpha=-1)
            self.errors[layer] = torch.where(kept, missing, 0)
            self.ignored[layer] = torch.where(kept, 0, missing)
            self.constants[layer] = self._to_residual(layer, bias, everywhere)
            norm = self.adapter.blocks[layer].post_mlp_norm
            if self.transcoders.write == "mlp.hook_out" and norm is not None:
                self.constants[layer] += 0 if norm.bias is None else norm.bias

    def _freeze_attention(self, owned: bool) -> None:
        """Patterns with the norms' scales folded in, and what attention adds whatever it reads."""
        scales, patterns, constants = self.forward.scales, [], []
        for layer, block in enumerate(self.adapter.blocks):
            pattern = self.forward.patterns[layer]
            after = pattern.new_ones(self.n_positions)
            if block.post_attention_norm is not None:
                after = scales["post_attention_norm"][layer]
            groups = self.adapter.heads // self.adapter.kv_heads
            read = block.value_constant.repeat_interleave(groups, dim=0)
            mixed = torch.einsum("hqk,hc->qhc", pattern, read)
            constant = torch.einsum("qhc,hcd->qd", mixed, block.output) + block.output_constant
            constant = constant * after[:, None]
            if (post := block.post_attention_norm) is not None and post.bias is not None:
                constant = constant + post.bias
            constants.append(constant)
            if not owned and (block.attention_norm or block.post_attention_norm) is not None:
                pattern = pattern.clone()
            if block.attention_norm is not None:
                pattern *= scales["attention_norm"][layer]
            if block.post_attention_norm is not None:
                pattern *= after[:, None]
            patterns.append(pattern)
        self.patterns = tuple(patterns)
        if owned:
            self.forward = replace(self.forward, patterns=())
        self.attention_constants = torch.stack(constants)

    def read_vectors(
        self, layer: int, rows: Int[Tensor, " target"]
    ) -> tuple[Float[Tensor, "target d_model"], Float[Tensor, " target"], Float[Tensor, " target"]]:
        """How features read the residual stream before their MLP.

        Args:
            layer: their layer.
            rows: their node rows.

        Returns:
            (vectors in the residual stream, bias terms, pre-activations), such that
            pre = vector · residual + bias.
        """
        positions, ids = self.features[rows][:, 1:].T
        return feature_reads(self.adapter, self.transcoders, self.forward, layer, positions, ids)

    def skip_map(self, layer: int) -> Float[Tensor, "d_model d_model"] | None:
        """The frozen skip connection without its norms' scales (`skip_scale`): residual before the
        MLP (in) to residual after it (out), as (out, in); None where the layer has no skip."""
        weights = self.transcoders.layer(layer)
        if weights.skip is None:
            return None
        skip = weights.skip.to(self.errors)
        block = self.adapter.blocks[layer]
        if self.transcoders.read != "hook_resid_mid" and block.mlp_norm is not None:
            if self.transcoders.read == "mlp.hook_in":
                skip = skip * block.mlp_norm.weight
            skip = block.mlp_norm.centre(skip)
        if self.transcoders.write == "mlp.hook_out" and block.post_mlp_norm is not None:
            skip = block.post_mlp_norm.centre(skip.T).T * block.post_mlp_norm.weight[:, None]
        return skip

    def skip_scale(self, layer: int) -> Float[Tensor, " position"]:
        """Product of the frozen scales on the skip connection, at each position."""
        block, scale = self.adapter.blocks[layer], self.errors.new_ones(self.n_positions)
        if self.transcoders.read != "hook_resid_mid" and block.mlp_norm is not None:
            scale = scale * self.forward.scales["mlp_norm"][layer]
        if self.transcoders.write == "mlp.hook_out" and block.post_mlp_norm is not None:
            scale = scale * self.forward.scales["post_mlp_norm"][layer]
        return scale

    def skip_constant(self, layer: int) -> Float[Tensor, "position d_model"]:
        """What the skip adds whatever the residual: the read norm's bias through it."""
        norm = self.adapter.blocks[layer].mlp_norm
        weights = self.transcoders.layer(layer)
        if weights.skip is None or norm is None or norm.bias is None:
            return torch.zeros_like(self.constants[layer])
        if self.transcoders.read != "mlp.hook_in":
            return torch.zeros_like(self.constants[layer])
        added = (weights.skip.to(self.errors) @ norm.bias).expand_as(self.constants[layer])
        return self._to_residual(layer, added, torch.arange(self.n_positions))


def feature_reads(
    adapter: Adapter,
    transcoders: TranscoderSet,
    forward: Forward,
    layer: int,
    positions: Int[Tensor, " target"],
    ids: Int[Tensor, " target"],
) -> tuple[Float[Tensor, "target d_model"], Float[Tensor, " target"], Float[Tensor, " target"]]:
    """How features of a layer, active or not, read the residual stream before their MLP.

    Returns:
        (vectors in the residual stream, bias terms, pre-activations), as `Local.read_vectors`.
    """
    x = forward.mlp_inputs[layer][positions]
    encoder, bias = transcoders.read_rows(layer, ids, x)
    pre = (encoder * x).sum(1) + bias
    norm = adapter.blocks[layer].mlp_norm
    if transcoders.read == "hook_resid_mid" or norm is None:
        return encoder, bias, pre
    if transcoders.read == "mlp.hook_in":
        if norm.bias is not None:
            bias = bias + encoder @ norm.bias
        encoder = encoder * norm.weight
    scale = forward.scales["mlp_norm"][layer][positions]
    return norm.centre(encoder) * scale[:, None], bias, pre
