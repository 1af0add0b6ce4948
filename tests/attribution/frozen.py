"""The local replacement model run forwards: the truth that edges are tested against.

Nothing of the sweep is used. The Hugging Face modules themselves run, in their own code, with hooks
that hold attention patterns, norm denominators and MLP outputs at what a clean pass gave them, and
add a change at one source. What then moves at every read site is the source's direct effect.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex

NAME = "frozen_for_tests"


class Frozen:
    """One prompt, frozen. `reads(change)` is what every target reads under a change.

    A change maps "embedding" to (positions, d_model) and a layer to (positions, d_model) at the
    transcoders' write site.
    """

    def __init__(self, local: Local):
        self.local, self.adapter = local, local.adapter
        self.forward = local.forward
        self.order = {id(b.attention): i for i, b in enumerate(self.adapter.blocks)}
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])

    def _attend(self, module, query, key, value, mask, **_):
        pattern = self.forward.patterns[self.order[id(module)]].to(value)
        heads = value.repeat_interleave(len(pattern) // value.shape[1], dim=1)
        return (pattern @ heads).transpose(1, 2).contiguous(), pattern[None]

    def reads(self, change: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """(read-site values (layers, positions, d_model), final norm output (positions, …))."""
        seen: dict = {}
        with ExitStack() as hooks:
            for layer, block in enumerate(self.adapter.blocks):
                self._freeze_block(hooks, layer, block, change, seen)
            final = self.adapter.final_norm
            self._freeze_norm(hooks, final, self.forward.final_scale)
            hooks.enter_context(_Hook(self.adapter.unembedding, before=_keep(seen, "final")))
            start = change.get("embedding")
            if start is not None:
                hooks.enter_context(
                    _Hook(self.adapter.layers[0], before=lambda m, a: (a[0] + start, *a[1:]))
                )
            used = self.adapter.model.config._attn_implementation
            self.adapter.model.set_attn_implementation(NAME)
            hooks.callback(self.adapter.model.set_attn_implementation, used)
            self.adapter.model(self.forward.token_ids[None], use_cache=False)
        sites = [seen[layer] for layer in range(self.local.n_layers)]
        return torch.stack(sites), seen["final"]

    def _freeze_block(self, hooks, layer, block, change, seen) -> None:
        scales, sets = self.forward.scales, self.local.transcoders
        for name in ("attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm"):
            norm = getattr(block, name)
            if norm is not None:
                self._freeze_norm(hooks, norm, scales[name][layer])
        clean = self.forward.mlp_outputs[layer]
        skip = sets.layer(layer).skip
        inner = block.mlp
        ahead = block.mlp_norm.module if block.mlp_norm is not None else inner
        read = sets.read

        def keep_residual(module, args):
            x = args[0][0]
            if read == "hook_resid_mid" or block.mlp_norm is None:
                seen[layer] = x
            elif read == "ln2.hook_normalized":
                scale = scales["mlp_norm"][layer][:, None]
                seen[layer] = block.mlp_norm.centre(x) * scale

        hooks.enter_context(_Hook(ahead, before=keep_residual))
        if read == "mlp.hook_in":
            hooks.enter_context(_Hook(inner, before=_keep(seen, layer)))

        def replace(module, args, output):
            result = clean + change.get(layer, 0)
            if skip is not None:
                moved = seen[layer] - self.forward.mlp_inputs[layer]
                result = result + moved @ skip.T
            result = result[None]
            return (result, *output[1:]) if isinstance(output, tuple) else result

        raw = sets.write == "mlp.hook_out" or block.post_mlp_norm is None
        site = inner if raw else block.post_mlp_norm.module
        hooks.enter_context(_Hook(site, after=replace))

    @staticmethod
    def _freeze_norm(hooks, norm, scale) -> None:
        def run(module, args, output):
            result = norm.centre(args[0]) * scale[:, None] * norm.weight
            return result if norm.bias is None else result + norm.bias

        hooks.enter_context(_Hook(norm.module, after=run))

    def change_of(self, index: NodeIndex, row: int, factor: float) -> dict:
        """The change that scales source `row` by 1 + factor."""
        kind, layer, position, feature = index.locate(row)
        shape = (self.local.n_positions, self.adapter.d_model)
        zero = torch.zeros(shape, dtype=self.adapter.dtype)
        if kind == "embedding":
            zero[position] = factor * self.forward.tokens[position]
            return {"embedding": zero}
        sets = self.local.transcoders
        if kind == "error":
            zero[position] = factor * self.write_site_error(layer, position)
            return {layer: zero}
        active = self.local.activations[row] * factor
        change = {}
        for offset, decoder in enumerate(sets.layer(layer).decoders):
            change[layer + offset] = zero.clone()
            change[layer + offset][position] = active * decoder[feature].to(zero)
        return change

    def write_site_error(self, layer: int, position: int) -> torch.Tensor:
        """True MLP output less the reconstruction, worked out anew from weights."""
        sets, index = self.local.transcoders, self.local.index
        if position in self.local.ignored_positions:
            return torch.zeros(self.adapter.d_model, dtype=self.adapter.dtype)
        rebuilt = sets.layer(layer).output_bias.to(self.adapter.dtype)
        if sets.layer(layer).skip is not None:
            rebuilt = rebuilt + self.forward.mlp_inputs[layer][position] @ sets.layer(layer).skip.T
        for source in sets.writers(layer):
            for row in index.feature_rows(source, position, position + 1):
                feature = int(index.features[row, 2])
                row_of = sets.layer(source).decoders[layer - source][feature].to(rebuilt)
                rebuilt = rebuilt + self.local.activations[row] * row_of
        return self.forward.mlp_outputs[layer][position] - rebuilt


def _keep(seen, name):
    def hook(module, args):
        seen[name] = args[0][0]

    return hook


class _Hook:
    """A forward hook for the length of a with block."""

    def __init__(self, module, before=None, after=None):
        self.handles = []
        if before is not None:
            self.handles.append(module.register_forward_pre_hook(before))
        if after is not None:
            self.handles.append(module.register_forward_hook(after))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
