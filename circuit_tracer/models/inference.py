"""An architecture that no entry describes, read off its structure and then checked.

One prompt runs through the model while every module's inputs and outputs are kept. Roles follow
from what flowed where, not from names: the attention module is the one that called the attention
interface, the norm before it is whatever made its input, the value projection is whatever made the
values. What comes out is a `Family` like any other, and is believed only if `check` finds that its
arithmetic is the model's: otherwise the model is refused with what failed. Nothing is assumed of an
architecture beyond what a `Family` can say.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.models.adapter import Adapter, epsilon, present
from circuit_tracer.models.attention import Compared, watched
from circuit_tracer.models.check import GUIDE, measure, no_patterns, refusal
from circuit_tracer.models.families import FAMILIES, Family
from circuit_tracer.shapes import Tensor

PREFIX = "inferred: "
IDLE = (nn.Dropout, nn.Identity)
UNSEEN = ("clip_qkv",)
"""Settings of a config that change attention for some inputs only: a short check may miss them."""


def adapt(model: Any, name: str, dtype: torch.dtype) -> Adapter:
    """The adapter of a model: by its family's entry, or inferred and checked.

    Raises:
        ModelError: neither an entry nor what was inferred describes it; says what failed.
    """
    architecture = type(model).__name__
    if any(architecture in family.architectures for family in FAMILIES):
        return Adapter(model, name, dtype)
    _refuse_unseen(model, name)
    found = infer(model, name)
    try:
        tried = []
        for parallel in (False, True):
            adapter = Adapter(model, name, dtype, replace(found, parallel=parallel))
            failed = [claim for claim in measure(adapter) if not claim.ok]
            if not failed:
                return adapter
            tried.append((len(failed), parallel, adapter, failed[0]))
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{name} ({architecture}) is of no known family, and its parts do not fit together "
            f"as their shapes suggest: {reason}. See {GUIDE}."
        ) from error
    _, _, adapter, claim = min(tried, key=lambda entry: entry[:2])
    raise ModelError(refusal(adapter, claim))


def _refuse_unseen(model: Any, name: str) -> None:
    config = model.config.get_text_config()
    for setting in UNSEEN:
        if getattr(config, setting, None) is not None:
            raise ModelError(
                f"{name} ({type(model).__name__}) cannot be traced exactly: its {setting} makes "
                f"attention values depend on the prompt in a way that is not frozen. See {GUIDE}."
            )


def infer(model: Any, name: str) -> Family:
    """Where a model keeps its parts, from one watched pass. Not yet checked.

    Raises:
        ModelError: a part that tracing needs is not there, or not as a module of its own.
    """
    return _Flow(model, name).family()


class _Flow:
    """What flowed through every module on one pass of a short prompt."""

    def __init__(self, model: Any, name: str):
        self.model, self.name = model, name
        self.architecture = type(model).__name__
        self.layers_path, self.layers = block_list(model)
        self.names = {id(module): path for path, module in model.named_modules()}
        self.order: list[nn.Module] = []
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.compared: dict[int, Compared] = {}
        self._run()

    def _fail(self, what: str) -> ModelError:
        known = ", ".join(family.name for family in FAMILIES)
        return ModelError(
            f"{self.name} ({self.architecture}) is of no known family ({known}), and cannot be "
            f"traced from its structure: {what}. {GUIDE} tells what a family needs."
        )

    def _run(self) -> None:
        draw = torch.Generator().manual_seed(3)
        vocabulary = self.model.config.get_text_config().vocab_size
        ids = torch.randint(vocabulary, (1, 5), generator=draw)
        embedding = self.model.get_input_embeddings()
        with ExitStack() as hooks, torch.no_grad():
            for module in self.model.modules():
                handle = module.register_forward_hook(self._keep, with_kwargs=True)
                hooks.callback(handle.remove)
            try:
                hooks.enter_context(watched(self.model, self.compared))
                self.model(input_ids=ids.to(embedding.weight.device), use_cache=False)
            except ModelError:
                raise
            except Exception as error:  # whatever a model's own code may raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise self._fail(f"it does not run under the attention interface: {reason}") from (
                    error
                )
        for layer, block in enumerate(self.layers):
            if not any(id(module) in self.compared for module in block.modules()):
                raise ModelError(no_patterns(self.name, self.model, layer))

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        made = output[0] if isinstance(output, tuple) else output
        self.order.append(module)
        if isinstance(given, Tensor):
            self.inputs[id(module)] = given
        if isinstance(made, Tensor):
            self.outputs[id(module)] = made

    def family(self) -> Family:
        block = self.layers[0]
        attention = next(m for m in block.modules() if id(m) in self.compared)
        parts = [
            m
            for m in block.children()
            if id(m) in self.outputs and m is not attention and not isinstance(m, IDLE)
        ]
        mlp = self._mlp(parts)
        norms = [part for part in parts if part is not mlp]
        value, output, query, key, fused = self._projections(attention)
        between: list[nn.Module | None] = [
            m for m in self._inside(attention) if not self._is_projection(m)
        ]
        between += [None, None]
        final = self._maker(self.model.get_output_embeddings(), self._outside())
        if final is None:
            raise self._fail("nothing that looks like a final norm feeds the unembedding")
        return Family(
            name=f"{PREFIX}{self.architecture}",
            architectures=(self.architecture,),
            norm=self._norm_kind(final),
            layers=self.layers_path,
            positions=self._positions(),
            final_norm=self.names[id(final)],
            attention_norm=self._path(self._maker(attention, norms), block),
            attention=self._path(attention, block) or "",
            query=query,
            key=key,
            query_norm=self._path(between[0], attention),
            key_norm=self._path(between[1], attention),
            value=value,
            output=output,
            post_attention_norm=self._path(self._user(attention, norms), block),
            mlp_norm=self._path(self._maker(mlp, norms), block),
            mlp=self._path(mlp, block) or "",
            post_mlp_norm=self._path(self._user(mlp, norms), block),
            fused=fused,
            transposed=type(attention.get_submodule(value)).__name__ == "Conv1D",
        )

    def _mlp(self, parts: list[nn.Module]) -> nn.Module:
        # A norm has vectors only; whatever holds a matrix is an MLP or a part of one.
        wide = [p for p in parts if any(w.ndim > 1 for w in p.parameters())]
        if len(wide) == 1 and id(wide[0]) in self.outputs:
            return wide[0]
        found = ", ".join(type(part).__name__ for part in wide) or "nothing"
        raise self._fail(
            f"a block must hold its MLP as one module beside attention; it holds {found}"
        )

    def _path(self, module: nn.Module | None, root: nn.Module) -> str | None:
        """The module's path inside another; None for None."""
        for path, found in root.named_modules():
            if found is module:
                return path
        return None

    def _maker(self, user: nn.Module, among: list[nn.Module]) -> nn.Module | None:
        """The module whose output is another's input."""
        wanted = self.inputs.get(id(user))
        return next((m for m in among if _same(self.outputs.get(id(m)), wanted)), None)

    def _user(self, maker: nn.Module, among: list[nn.Module]) -> nn.Module | None:
        """The module whose input is another's output."""
        made = self.outputs.get(id(maker))
        return next((m for m in among if _same(self.inputs.get(id(m)), made)), None)

    def _outside(self) -> list[nn.Module]:
        inner = {id(module) for module in self.layers.modules()}
        return [m for m in self.order if id(m) not in inner and not list(m.children())]

    def _inside(self, attention: nn.Module) -> list[nn.Module]:
        """What ran inside attention, in order, but for dropouts and itself."""
        mine = {id(module) for module in attention.modules()} - {id(attention)}
        return [m for m in self.order if id(m) in mine and not isinstance(m, IDLE)]

    @staticmethod
    def _is_projection(module: nn.Module) -> bool:
        return any(weight.ndim == 2 for weight in module.parameters(recurse=False))

    def _projections(
        self, attention: nn.Module
    ) -> tuple[str, str, str, str, Literal["stacked", "by_head"] | None]:
        """(value, output, query, key, how they are fused) of an attention module."""
        linear = [m for m in self._inside(attention) if self._is_projection(m)]
        if len(linear) not in (2, 4):
            raise self._fail(
                f"its attention has {len(linear)} projections; queries, keys, values and outputs "
                "should be four, or two where the first three are one"
            )
        paths = [self._path(module, attention) or "" for module in linear]
        value = self.compared[id(attention)].value
        if len(linear) == 2:
            query, key = Family.query, Family.key  # not looked at where fused
            return paths[0], paths[1], query, key, self._layout(linear[0], value)
        made = [_heads(self.outputs[id(module)], value) for module in linear[:3]]
        found = [number for number, output in enumerate(made) if _same(output, value)]
        if len(found) != 1:
            raise self._fail("no projection of its attention gives the values as they are mixed")
        query, key = (path for n, path in enumerate(paths[:3]) if n != found[0])
        return paths[found[0]], paths[3], query, key, None

    def _layout(self, fused: nn.Module, value: Tensor) -> Literal["stacked", "by_head"]:
        made = self.outputs[id(fused)]
        if _same(_heads(made[..., -value.shape[0] * value.shape[2] :], value), value):
            return "stacked"
        heads, positions, size = value.shape
        if made.shape[-1] == 3 * heads * size:
            split = made.reshape(positions, heads, 3, size)[:, :, 2].transpose(0, 1)
            if _same(split, value):
                return "by_head"
        raise self._fail("its fused projection is neither stacked nor laid out by head")

    def _positions(self) -> str | None:
        """A learned position embedding: the table that is looked up beside that of the tokens."""
        tokens = self.model.get_input_embeddings()
        found = [m for m in self._outside() if isinstance(m, nn.Embedding) and m is not tokens]
        if len(found) > 1:
            raise self._fail(f"it looks {len(found)} tables up beside that of its tokens")
        return self.names[id(found[0])] if found else None

    def _norm_kind(self, norm: nn.Module) -> Literal["rms", "rms_plus_one", "layer"]:
        """Which formula the norm follows, by running it."""
        with present(norm), torch.no_grad():
            parameters = {name: p.detach() for name, p in norm.named_parameters()}
            if not set(parameters) <= {"weight", "bias"}:
                raise self._fail(f"its norm {type(norm).__name__} is no norm with weight and bias")
            given = self.inputs[id(norm)]
            x = torch.linspace(-1, 2, given.shape[-1]).pow(3).to(given)
            made, x = norm(x[None])[0].float(), x.float()
            weight = parameters.get("weight", torch.ones(())).float()
            bias = parameters.get("bias", torch.zeros(())).float()
            eps, centred = epsilon(norm), x - x.mean()
        plain = x * torch.rsqrt(x.pow(2).mean() + eps)
        candidates = {
            "rms": plain * weight + bias,
            "rms_plus_one": plain * (1 + weight) + bias,
            "layer": centred * torch.rsqrt(centred.pow(2).mean() + eps) * weight + bias,
        }
        off = {kind: float((made - y).norm() / made.norm()) for kind, y in candidates.items()}
        best = min(off, key=lambda kind: off[kind])
        if not off[best] <= 8 * torch.finfo(given.dtype).eps + 1e-5:
            raise self._fail(
                f"its norm {type(norm).__name__} is neither RMSNorm nor LayerNorm "
                f"(off by {off[best]:.2g} at best)"
            )
        return best  # type: ignore[return-value]


def block_list(model: Any) -> tuple[str, nn.ModuleList]:
    """(path, blocks): the list of as many modules as the config has layers.

    Raises:
        ModelError: there is none.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    # A model of images and text has a list of each; the decoder is the one that reads text.
    text = {id(module) for module in model.get_decoder().modules()}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in text:
            return path, module
    raise ModelError(
        f"{type(model).__name__} cannot be traced: it has no list of {count} blocks, which is what "
        f"its config says. {GUIDE} tells what a family needs."
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (
        a is not None
        and b is not None
        and a.numel() == b.numel()
        and torch.equal(a.reshape(b.shape), b)
    )


def _heads(flat: Tensor, like: Tensor) -> Tensor | None:
    """(1, P, heads · head_dim) as (heads, P, head_dim)."""
    heads, positions, size = like.shape
    if flat.numel() != like.numel():
        return None
    return flat.reshape(positions, heads, size).transpose(0, 1)
