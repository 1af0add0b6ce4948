"""Is the frozen model the model? Measured on a short prompt, not taken on trust.

A family's entry claims that every block is

    middle = x + post(attention(norm x))        y = middle + post_mlp(mlp(norm_mlp middle))

with attention = pattern times folded value and output, and each norm `(C x) * scale * weight +
bias`. Here each of these claims is worked out from what the model was given and compared with what
the model made of it, step by step, so that what fails has a name and a number. Models are compared
in float32 at least: half-precision weights are widened for as long as this takes, which loses
nothing on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.errors import ModelError
from circuit_tracer.models.adapter import Adapter, Block, Norm
from circuit_tracer.models.attention import watched
from circuit_tracer.shapes import Float, Int, Tensor

TOLERANCE = 1e-4
"""Largest error of a position, as a share of what was expected there, in float32 arithmetic."""
GUIDE = "docs/add_a_family.md"


@dataclass(frozen=True)
class Claim:
    """One claim, held against the model.

    Attributes:
        name: what was claimed.
        where: the layer or part where it holds worst.
        error: the largest error of a position there, as a share of the true vector's length.
    """

    name: str
    where: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= TOLERANCE


def check(adapter: Adapter, token_ids: Sequence[int] | None = None) -> tuple[Claim, ...]:
    """Hold every claim of the adapter's family against the model.

    Args:
        token_ids: what to run on; None for a short prompt of random tokens with a repeated one.

    Returns:
        The claims, each with its worst error, in the order of the computation.

    Raises:
        ModelError: the first claim that does not hold, with its number.
    """
    claims = measure(adapter, token_ids)
    for claim in claims:
        if not claim.ok:
            raise ModelError(refusal(adapter, claim))
    return claims


def measure(adapter: Adapter, token_ids: Sequence[int] | None = None) -> tuple[Claim, ...]:
    """As `check`, but claims that do not hold are returned like the others."""
    ids = random_prompt(adapter) if token_ids is None else torch.tensor(list(token_ids))
    with _widened(adapter), torch.no_grad():
        plain = _plain_logits(adapter, ids)
        seen = _Seen(adapter, ids)
        return tuple(_worst(list(_claims(adapter, seen, plain))))


def refusal(adapter: Adapter, claim: Claim) -> str:
    return (
        f"{adapter.name} ({type(adapter.model).__name__}) cannot be traced exactly: "
        f"'{claim.name}' does not hold at {claim.where} (off by {claim.error:.2g} of its length, "
        f"allowed {TOLERANCE:g}). It computes something that a family's entry cannot say, or that "
        f"the entry used ({adapter.family.name}) does not: see {GUIDE}."
    )


def not_finite(adapter: Adapter) -> str:
    """What is wrong with a model whose logits are not numbers."""
    for name, parameter in adapter.model.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            return (
                f"{adapter.name} gives NaN or infinite logits: its weight {name} is not finite. "
                "The file is damaged or the conversion failed; fetch the model again."
            )
    return (
        f"{adapter.name} gives NaN or infinite logits in {adapter.model.dtype} although its "
        "weights are finite: load it with dtype='float32'."
    )


def random_prompt(adapter: Adapter) -> Int[Tensor, " position"]:
    """Eleven tokens, one of them three times, the same ones at every call."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(adapter.vocabulary, (11,), generator=draw)
    ids[3] = ids[7] = ids[10].item()
    return ids[: adapter.context]


def _plain_logits(adapter: Adapter, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return adapter.model(input_ids=ids[None].to(adapter.device), use_cache=False).logits[0]


class _Seen:
    """Inputs and outputs of every module that the adapter names, on one watched pass."""

    def __init__(self, adapter: Adapter, ids: Tensor):
        self.adapter, self.ids = adapter, ids
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        modules = [adapter.final_norm.module, adapter.unembedding, *adapter.layers]
        for block in adapter.blocks:
            norms = (getattr(block, name) for name in NORMS)
            modules += [block.attention, block.mlp, *(n.module for n in norms if n is not None)]
        if adapter.positions is not None:
            modules.append(adapter.positions)
        with ExitStack() as hooks:
            for module in set(modules):
                handle = module.register_forward_hook(self._keep, with_kwargs=True)
                hooks.callback(handle.remove)
            self.patterns = hooks.enter_context(watched(adapter.model))
            self.logits = _plain_logits(adapter, ids)

    def _keep(self, module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        made = output[0] if isinstance(output, tuple) else output
        for kept, value in ((self.inputs, given), (self.outputs, made)):
            if isinstance(value, Tensor):
                kept[id(module)] = self._place(value[0] if value.ndim > 2 else value)

    def _place(self, value: Tensor) -> Tensor:
        exact = self.adapter.dtype if value.is_floating_point() else value.dtype
        return value.to(self.adapter.device, exact)

    def read(self, module: Any) -> Float[Tensor, "position d_model"]:
        return self._found(self.inputs, module)

    def made(self, module: Any) -> Float[Tensor, "position d_model"]:
        return self._found(self.outputs, module)

    def _found(self, kept: dict[int, Tensor], module: Any) -> Tensor:
        shape = (len(self.ids), self.adapter.d_model)
        value = kept.get(id(module))
        if value is None or value.shape != shape:
            came = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise ModelError(
                f"{self.adapter.name}: {type(module).__name__} should pass on vectors of shape "
                f"{shape}, one a position; {came} came through. {GUIDE} tells what is needed."
            )
        return value

    def pattern(self, layer: int, block: Block) -> Float[Tensor, "head position position"]:
        pattern = self.patterns.get(id(block.attention))
        if pattern is None:
            raise ModelError(no_patterns(self.adapter.name, self.adapter.model, layer))
        return self._place(pattern)


NORMS = ("attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm")


def no_patterns(name: str, model: Any, layer: int) -> str:
    return (
        f"{name} ({type(model).__name__}) cannot be traced: no attention pattern of layer {layer} "
        "comes through transformers' attention interface, so attention cannot be frozen there "
        f"(state-space, linear and hand-written attention do not go through it). See {GUIDE}."
    )


Compared = tuple[str, str, Tensor, Tensor, Tensor | None]


def _claims(adapter: Adapter, seen: _Seen, plain: Tensor) -> Iterator[Compared]:
    """(claim, where, found, expected, scale of the error or None for the expected's length)."""
    if not torch.isfinite(plain).all():
        raise ModelError(not_finite(adapter))
    wide = seen.logits.to(adapter.dtype)
    yield "the watched pass gives the model's own logits", "the logits", wide, plain.to(wide), None
    yield _tokens_alone(adapter, seen)
    for layer, block in enumerate(adapter.blocks):
        for claim in _block_claims(adapter, seen, layer, block):
            yield claim[0], f"layer {layer}", *claim[1:]
    final, head = adapter.final_norm, adapter.unembedding
    last, start = seen.made(adapter.layers[-1]), seen.read(final.module)
    yield "the final norm reads the last block", "the final norm", start, last, None
    yield "the norm's formula", "the final norm", seen.read(head), apply(final, start), None
    yield _logits(adapter, seen.read(head), wide)


def _block_claims(
    adapter: Adapter, seen: _Seen, layer: int, block: Block
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    x, after = seen.read(block.module), seen.made(block.module)
    if layer:
        below = seen.made(adapter.layers[layer - 1])
        yield "a block reads what the block before wrote", x, below, None
    attention = seen.made(block.attention)
    yield "the attention norm's formula", seen.read(block.attention), normed(block, 0, x), None
    yield (
        "attention as pattern, value and output",
        attention if (post := block.post_attention_norm) is None else seen.made(post.module),
        _attention(adapter, seen, layer, block, x, attention),
        None,
    )
    added = attention if post is None else seen.made(post.module)
    # Against what was added: a long residual vector must not hide a factor on a short one.
    rounding = torch.finfo(after.dtype).eps / TOLERANCE * 8 * x.norm(dim=1)
    ahead = block.mlp if block.mlp_norm is None else block.mlp_norm.module
    middle = seen.read(ahead)
    if adapter.parallel:
        yield "the MLP reads the block's input", middle, x, None
    else:
        scale = added.norm(dim=1) + rounding
        yield "residual before the MLP = before + attention", middle, x + added, scale
    yield "the MLP norm's formula", seen.read(block.mlp), normed(block, 2, middle), None
    written = seen.made(block.mlp)
    if (last := block.post_mlp_norm) is not None:
        yield "the post-MLP norm's formula", seen.made(last.module), apply(last, written), None
        written = seen.made(last.module)
    scale = added.norm(dim=1) + written.norm(dim=1) + rounding
    yield "residual = before + attention + MLP", after, x + added + written, scale


def apply(norm: Norm, x: Float[Tensor, "position d_model"]) -> Float[Tensor, "position d_model"]:
    """The norm by its formula."""
    result = norm.centre(x) * norm.scale(x)[:, None] * norm.weight
    return result if norm.bias is None else result + norm.bias


def normed(block: Block, which: int, x: Tensor) -> Tensor:
    norm = getattr(block, NORMS[which])
    return x if norm is None else apply(norm, x)


def _attention(
    adapter: Adapter, seen: _Seen, layer: int, block: Block, x: Tensor, raw: Tensor
) -> Tensor:
    """What attention adds to the residual stream, from the folded matrices."""
    folded, before, after = block.fold(), block.attention_norm, block.post_attention_norm
    source = x if before is None else x * before.scale(x)[:, None]
    heads = torch.einsum("kd,dgc->kgc", source, folded.value) + folded.value_constant
    heads = heads.repeat_interleave(adapter.heads // adapter.kv_heads, dim=1)
    mixed = torch.einsum("hqk,khc->qhc", seen.pattern(layer, block), heads)
    result = torch.einsum("qhc,hcd->qd", mixed, folded.output) + folded.output_constant
    if after is not None:
        result = result * after.scale(raw)[:, None]
        result = result if after.bias is None else result + after.bias
    return result


def _tokens_alone(adapter: Adapter, seen: _Seen) -> Compared:
    """Less position embeddings, what enters the first block is the same wherever a token stands."""
    start = seen.read(adapter.layers[0])
    if adapter.positions is not None:
        start = start - seen.outputs[id(adapter.positions)]
    first = [seen.ids.tolist().index(token) for token in seen.ids.tolist()]
    return "an embedding depends on its token alone", "the embeddings", start, start[first], None


def _logits(adapter: Adapter, final: Tensor, logits: Tensor) -> Compared:
    head = adapter.unembedding
    weight, bias = head.weight.detach().to(final), getattr(head, "bias", None)
    found = final @ weight.T
    found = found if bias is None else found + bias.to(final)
    cap = getattr(adapter.model.config.get_text_config(), "final_logit_softcapping", None)
    found = found if cap is None else cap * torch.tanh(found / cap)
    return "logits = unembedding of the final norm", "the logits", logits, found, None


def _worst(compared: list[Compared]) -> Iterator[Claim]:
    """A claim a name, with its worst place."""
    found: dict[str, Claim] = {}
    for name, where, value, expected, scale in compared:
        length = expected.norm(dim=-1) if scale is None else scale
        error = float(((value - expected).norm(dim=-1) / length.clamp_min(1e-12)).max())
        if not error < float("inf"):
            error = float("inf")
        if name not in found or error > found[name].error:
            found[name] = Claim(name, where, error)
    yield from found.values()


@contextmanager
def _widened(adapter: Adapter) -> Iterator[None]:
    """Half-precision weights in float32 meanwhile."""
    halves = [
        (tensor, tensor.dtype)
        for tensor in (*adapter.model.parameters(), *adapter.model.buffers())
        if tensor.dtype in (torch.bfloat16, torch.float16)
    ]
    if any(tensor.is_meta for tensor, _ in halves):
        raise ModelError(
            f"{adapter.name} is offloaded in half precision, in which it cannot be checked; pass "
            "dtype='float32' (--dtype float32), or load it without offload"
        )
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
