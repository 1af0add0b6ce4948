"""The adapter: a transformer as the frozen linear maps between its sites.

With attention patterns and norm denominators frozen, a block is linear. Everything about it that
does not depend on the prompt is folded here, once, into two matrices a layer:

    value  = W_V diag(w_norm) C        into the heads, kept as (d_model, kv_heads, head_dim)
    output = diag(w_post) C W_O        out of them, kept as (heads, head_dim, d_model)

each transposed in memory, as a gradient on its way down meets them.

(C centres, for LayerNorm; the post-norm exists in Gemma.) What depends on the prompt, the norm
scales, is a number a position, and multiplies the pattern. So the attention step of a family with
four norms costs the same three matrix products as that of a family with none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.models.families import Family, family_of
from circuit_tracer.shapes import Float, Tensor


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm with its denominator taken out: `norm(x) = (C x) * scale * weight + bias`.

    Attributes:
        module: the module itself, for hooks.
        weight: (d_model,) effective multiplier.
        bias: (d_model,) or None.
        centred: whether C subtracts the mean (LayerNorm).
        eps: added to the variance.
    """

    module: nn.Module
    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    centred: bool
    eps: float

    def scale(self, x: Float[Tensor, "position d_model"]) -> Float[Tensor, " position"]:
        """1 / denominator at each position, in at least float32."""
        x = self.centre(x.to(torch.promote_types(x.dtype, torch.float32)))
        return torch.rsqrt(x.pow(2).mean(-1) + self.eps)

    def centre(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """C x. C is symmetric, so this is also its transpose."""
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block: its modules, its norms, and its attention folded.

    Attributes:
        value: (d_model, kv_heads, head_dim), attention norm folded in.
        output: (heads, head_dim, d_model), post-attention norm folded in.
        value_constant: (kv_heads, head_dim): what the heads read whatever the input (b_V and the
            norm's bias through W_V).
        output_constant: (d_model,): b_O, post-norm folded in; still to be scaled by that norm.
    """

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    attention_norm: Norm | None
    post_attention_norm: Norm | None
    mlp_norm: Norm | None
    post_mlp_norm: Norm | None
    value: Float[Tensor, "d_model kv_head head_dim"]
    output: Float[Tensor, "head head_dim d_model"]
    value_constant: Float[Tensor, "kv_head head_dim"]
    output_constant: Float[Tensor, " d_model"]


class Adapter:
    """What tracing needs of a Hugging Face causal language model.

    Args:
        model: the model, in eval mode.
        name: what it is called in messages.
        dtype: dtype of the folded weights (float32, or float64 for a float64 model).

    Raises:
        ModelError: unknown architecture, or a module not where its family says.
    """

    def __init__(self, model: Any, name: str, dtype: torch.dtype = torch.float32):
        self.model = model
        self.name = name
        self.dtype = dtype
        config = model.config.get_text_config()
        self.family: Family = family_of(type(model).__name__)
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_model = config.hidden_size
        self.head_dim = getattr(config, "head_dim", None) or self.d_model // self.heads
        self.vocabulary = config.vocab_size
        self.context = getattr(config, "max_position_embeddings", None)
        self.parallel = self.family.parallel and getattr(config, "use_parallel_residual", True)
        self.layers: nn.ModuleList = self._find(model, self.family.layers)
        self.final_norm = self._norm(model, self.family.final_norm)
        self.unembedding: nn.Linear = model.get_output_embeddings()

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def mean_unembedding(self) -> tuple[Float[Tensor, " d_model"], float]:
        """Mean unembedding column over the vocabulary, and mean of b_U."""
        weight, bias = self.unembedding.weight.detach(), getattr(self.unembedding, "bias", None)
        return weight.mean(0, dtype=self.dtype), 0.0 if bias is None else float(bias.mean())

    @cached_property
    def positions(self) -> nn.Module | None:
        """The learned position embedding, if there is one."""
        return self._find(self.model, self.family.positions) if self.family.positions else None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block, folded. Costs one copy of the attention weights in `dtype`."""
        return tuple(self._block(module) for module in self.layers)

    def _find(self, root: nn.Module, path: str) -> Any:
        try:
            return root.get_submodule(path)
        except AttributeError as error:
            raise ModelError(
                f"{self.name} ({type(self.model).__name__}) has no module {path!r}, where the "
                f"{self.family.name} family keeps it. The model was changed, or its transformers "
                "version moved it: report this with `circuit-tracer doctor`."
            ) from error

    def _norm(self, root: nn.Module, path: str) -> Norm:
        module = self._find(root, path)
        weight = module.weight.detach().to(self.dtype)
        bias = getattr(module, "bias", None)
        eps = next(
            getattr(module, name)
            for name in ("variance_epsilon", "eps", "epsilon")
            if hasattr(module, name)
        )
        return Norm(
            module=module,
            weight=weight + 1 if self.family.norm == "rms_plus_one" else weight,
            bias=None if bias is None else bias.detach().to(self.dtype),
            centred=self.family.norm == "layer",
            eps=eps,
        )

    def _block(self, module: nn.Module) -> Block:
        family = self.family
        before, after, mlp_before, mlp_after = (
            self._norm(module, path) if path else None
            for path in (
                family.attention_norm,
                family.post_attention_norm,
                family.mlp_norm,
                family.post_mlp_norm,
            )
        )
        attention = self._find(module, family.attention)
        value, value_bias = self._projection(self._find(attention, family.value))
        output, output_bias = self._projection(self._find(attention, family.output))
        rows = self._value_rows(len(value))
        value, value_bias = value[rows], value_bias[rows]
        if before is not None:
            if before.bias is not None:
                value_bias = value_bias + value @ before.bias
            value = before.centre(value * before.weight)
        if after is not None:
            output = after.centre(output.T).T * after.weight[:, None]
            output_bias = after.centre(output_bias) * after.weight
        return Block(
            module=module,
            attention=attention,
            mlp=self._find(module, family.mlp),
            value=value.T.contiguous().view(self.d_model, self.kv_heads, self.head_dim),
            output=output.T.contiguous().view(self.heads, self.head_dim, self.d_model),
            value_constant=value_bias.reshape(self.kv_heads, self.head_dim),
            output_constant=output_bias,
            attention_norm=before,
            post_attention_norm=after,
            mlp_norm=mlp_before,
            post_mlp_norm=mlp_after,
        )

    def _value_rows(self, width: int) -> Tensor:
        """Which outputs of the value projection are values."""
        outputs = torch.arange(width)
        if self.family.fused == "by_head":
            return outputs.view(self.heads, 3, self.head_dim)[:, 2].flatten()
        return outputs[-self.kv_heads * self.head_dim :]

    def _projection(self, module: Any) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
        """(weight as (out, in), bias or zeros) of a projection, in the adapter's dtype."""
        weight = module.weight.detach().to(self.dtype)
        if self.family.transposed:
            weight = weight.T
        bias = getattr(module, "bias", None)
        zeros = weight.new_zeros(weight.shape[0])
        return weight, zeros if bias is None else bias.detach().to(self.dtype)
