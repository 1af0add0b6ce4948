"""The adapter: a transformer as the frozen linear maps between its sites.

With attention patterns and norm denominators frozen, a block is linear. Everything about it that
does not depend on the prompt is folded here, once, into two matrices a layer:

    value  = W_V diag(w_norm) C        into the heads, kept as (d_model, kv_heads, head_dim)
    output = diag(w_post) C W_O        out of them, kept as (heads, head_dim, d_model)

each transposed in memory, as a gradient on its way down meets them.

(C centres, for LayerNorm; the post-norm exists in Gemma.) What depends on the prompt, the norm
scales, is a number a position, and multiplies the pattern. So the attention step of a family with
four norms costs the same three matrix products as that of a family with none.

A layer is folded when its matrices are first asked for, and kept; where weights live offloaded,
one layer is kept at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.models.families import Family, family_of
from circuit_tracer.shapes import Float, Int, Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
class Folded:
    """The attention of one block as matrices.

    Attributes:
        value: (d_model, kv_heads, head_dim), attention norm folded in.
        output: (heads, head_dim, d_model), post-attention norm folded in.
        value_constant: (kv_heads, head_dim): what the heads read whatever the input (b_V and the
            norm's bias through W_V).
        output_constant: (d_model,): b_O, post-norm folded in; still to be scaled by that norm.
    """

    value: Float[Tensor, "d_model kv_head head_dim"]
    output: Float[Tensor, "head head_dim d_model"]
    value_constant: Float[Tensor, "kv_head head_dim"]
    output_constant: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block: its modules, its norms, and its attention.

    Attributes:
        fold: gives the attention folded; its fields are also properties here.
    """

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    attention_norm: Norm | None
    post_attention_norm: Norm | None
    mlp_norm: Norm | None
    post_mlp_norm: Norm | None
    fold: Callable[[], Folded]

    @property
    def value(self) -> Float[Tensor, "d_model kv_head head_dim"]:
        return self.fold().value

    @property
    def output(self) -> Float[Tensor, "head head_dim d_model"]:
        return self.fold().output

    @property
    def value_constant(self) -> Float[Tensor, "kv_head head_dim"]:
        return self.fold().value_constant

    @property
    def output_constant(self) -> Float[Tensor, " d_model"]:
        return self.fold().output_constant


@dataclass(frozen=True, eq=False)
class Projection:
    """How the heads of a layer make queries, or keys, of the residual stream before the block.

    Before rotary positions: `norm(weight @ C x * scale + bias)`, C and scale the attention norm's.

    Attributes:
        module: what computes it, without the norms.
        outputs: (heads, head_dim) which outputs of the module these are.
        weight, bias: attention norm folded in, but for its scale.
        norm: on what comes out: of each head, or of all at once, as wide as its weight.
    """

    module: nn.Module
    outputs: Int[Tensor, "head head_dim"]
    weight: Float[Tensor, "head head_dim d_model"]
    bias: Float[Tensor, "head head_dim"]
    norm: Norm | None


class Adapter:
    """What tracing needs of a Hugging Face causal language model.

    Args:
        model: the model, in eval mode.
        name: what it is called in messages.
        dtype: dtype of the folded weights (float32, or float64 for a float64 model).
        family: where it keeps its parts; None looks its class name up.

    Raises:
        ModelError: unknown architecture, or a module not where its family says.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        dtype: torch.dtype = torch.float32,
        family: Family | None = None,
    ):
        self.model = model
        self.name = name
        self.dtype = dtype
        config = model.config.get_text_config()
        self.family: Family = family or family_of(type(model).__name__)
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_model = config.hidden_size
        self.head_dim = getattr(config, "head_dim", None) or self.d_model // self.heads
        self.vocabulary = config.vocab_size
        self.context = getattr(config, "max_position_embeddings", None)
        self.parallel = self.family.parallel and getattr(config, "use_parallel_residual", True)
        self.layers: nn.ModuleList = self._find(model, self.family.layers)
        self.unembedding: nn.Linear = model.get_output_embeddings()
        self.final_norm = self._norm(model, self.family.final_norm)
        self.offloaded = any(parameter.is_meta for parameter in self.layers.parameters())
        self._folded: dict[int, Folded] = {}

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def device(self) -> torch.device:
        """Where everything that is not the model itself is worked out: beside the unembedding."""
        return self.unembedding.weight.device

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
        """Every block. Folding all costs a copy of the value projections in `dtype`, and one of the
        output projections where a norm follows them or the model has another dtype."""
        return tuple(self._block(layer, module) for layer, module in enumerate(self.layers))

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
        weight, bias = self._weights(module)
        return Norm(
            module=module,
            weight=weight + 1 if self.family.norm == "rms_plus_one" else weight,
            bias=bias,
            centred=self.family.norm == "layer",
            eps=epsilon(module),
        )

    def _weights(self, module: Any) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of a module on the adapter's device and in its dtype; a norm without
        weights has ones."""
        with present(module):
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is None:
                weight = torch.ones(self.d_model)
            if weight.dtype not in FLOATS or type(weight) not in (Tensor, nn.Parameter):
                raise ModelError(_quantised(self.name, module, weight))
            place: Any = {"device": self.device, "dtype": self.dtype}
            return (
                weight.detach().to(**place),
                None if bias is None else bias.detach().to(**place),
            )

    def _block(self, layer: int, module: nn.Module) -> Block:
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
        return Block(
            module=module,
            attention=attention,
            mlp=self._find(module, family.mlp),
            attention_norm=before,
            post_attention_norm=after,
            mlp_norm=mlp_before,
            post_mlp_norm=mlp_after,
            fold=lambda: self._fold_once(layer, attention, before, after),
        )

    def _fold_once(
        self, layer: int, attention: nn.Module, before: Norm | None, after: Norm | None
    ) -> Folded:
        if layer not in self._folded:
            if self.offloaded:
                self._folded.clear()
            self._folded[layer] = self._fold(attention, before, after)
        return self._folded[layer]

    def _fold(self, attention: nn.Module, before: Norm | None, after: Norm | None) -> Folded:
        family = self.family
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
        return Folded(
            value=value.T.view(self.d_model, self.kv_heads, self.head_dim),
            output=output.T.view(self.heads, self.head_dim, self.d_model),
            value_constant=value_bias.reshape(self.kv_heads, self.head_dim),
            output_constant=output_bias,
        )

    def query(self, layer: int) -> Projection:
        """How the heads of a layer make their queries. Folded anew at each call."""
        family = self.family
        return self._comparison(layer, family.query, family.query_norm, self.heads, 0)

    def key(self, layer: int) -> Projection:
        """How the heads of a layer make their keys. Folded anew at each call."""
        family = self.family
        return self._comparison(layer, family.key, family.key_norm, self.kv_heads, 1)

    def _comparison(
        self, layer: int, path: str, norm: str | None, heads: int, which: int
    ) -> Projection:
        family, block = self.family, self.blocks[layer]
        module = self._find(block.attention, family.value if family.fused else path)
        weight, bias = self._projection(module)
        outputs = torch.arange(heads * self.head_dim).view(heads, self.head_dim)
        if family.fused == "stacked":
            outputs = outputs + which * self.heads * self.head_dim
        elif family.fused == "by_head":
            outputs = torch.arange(len(weight)).view(heads, 3, self.head_dim)[:, which]
        weight, bias = weight[outputs], bias[outputs]
        if (before := block.attention_norm) is not None:
            if before.bias is not None:
                bias = bias + weight @ before.bias
            weight = before.centre(weight * before.weight)
        return Projection(
            module, outputs, weight, bias, self._norm(block.attention, norm) if norm else None
        )

    def _value_rows(self, width: int) -> Tensor:
        """Which outputs of the value projection are values."""
        outputs = torch.arange(width)
        if self.family.fused == "by_head":
            return outputs.view(self.heads, 3, self.head_dim)[:, 2].flatten()
        return outputs[-self.kv_heads * self.head_dim :]

    def _projection(self, module: Any) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
        """(weight as (out, in), bias or zeros) of a projection, in the adapter's dtype."""
        if getattr(module, "weight", None) is None:  # kept packed, under another name
            raise ModelError(_quantised(self.name, module, None))
        weight, bias = self._weights(module)
        if self.family.transposed:
            weight = weight.T
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """While inside, the weights of a module are here, also where they live offloaded."""
    if any(parameter.is_meta for parameter in module.parameters()):
        from accelerate.utils import align_module_device

        with align_module_device(module):
            yield
    else:
        yield


def epsilon(module: Any) -> float:
    """What a norm adds to the variance: its attribute, or where it has none, measured."""
    for name in ("variance_epsilon", "eps", "epsilon"):
        if isinstance(found := getattr(module, name, None), float):
            return found
    return _measured_epsilon(module)


def _measured_epsilon(module: Any) -> float:
    """From the norm of a vector so small that epsilon is nearly all of its variance."""
    width = next((len(p) for p in module.parameters()), 16)
    weight = next(iter(module.parameters()), torch.ones(width))
    sign = torch.ones(width, device=weight.device, dtype=weight.dtype)
    sign[1::2] = -1
    tiny = 1e-4 * sign
    with torch.no_grad():
        slope = (module(tiny[None])[0] - module(torch.zeros_like(tiny)[None])[0]) / tiny
    return float(((weight.detach() / slope.abs()) ** 2).median() - 1e-8)


def _quantised(name: str, module: Any, weight: Tensor | None) -> str:
    kind = "packed" if weight is None else str(weight.dtype).removeprefix("torch.")
    return (
        f"the weights of {name} are quantised ({type(module).__name__}, {kind}), and edges need "
        "their values: a graph would not be exact. Running, tokenising and measuring work; to "
        "trace, load the model unquantised (device='balanced' or offload='cpu' where it is too "
        "large)."
    )
