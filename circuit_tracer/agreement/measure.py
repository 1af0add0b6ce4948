"""The figures: how far a replacement model is from its model, on a text.

By layer, on the model's own activations:

    normalised MSE   Σ ‖y − ŷ‖² / Σ ‖y − ȳ‖²     ŷ the reconstruction, ȳ the mean over positions
    L0               features active at a position, on average
    dead share       features that fire nowhere in the text

and with every MLP replaced at once (docs/maths.md, the replacement model): the increase of
cross-entropy, KL(model ‖ replacement) in nats, and how often both find the same token likeliest.
The first position is left out of all of it, and keeps its MLPs: what happens at the beginning of a
text is not like the rest, and no graph shows it by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from circuit_tracer.agreement.splicing import reconstruct, spliced
from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward
from circuit_tracer.models.attention import watched
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

Progress = Callable[[float, str], None]
Positions = Literal["all", "last"]

WINDOW = 256
"""Longer texts are measured in pieces of so many tokens, each with its own beginning."""


@dataclass(frozen=True)
class LayerAgreement:
    """One layer. `nmse` and `dead` are None where it has no transcoder."""

    layer: int
    features: int
    nmse: float | None
    l0: float
    dead: float | None


@dataclass(frozen=True)
class Agreement:
    """How well a set stands in for its model's MLPs.

    Attributes:
        model, transcoders: names.
        kind: "plt" or "clt".
        texts, positions: how many pieces of text, and positions in them, were measured.
        layers: by layer.
        top1: share of positions where model and replacement find the same token likeliest.
        kl: KL(model ‖ replacement), nats a position.
        cross_entropy, cross_entropy_replaced: of the next token, nats; None where no position
            that was measured has one.
    """

    model: str
    transcoders: str
    kind: str
    texts: int
    positions: int
    layers: tuple[LayerAgreement, ...]
    top1: float
    kl: float
    cross_entropy: float | None
    cross_entropy_replaced: float | None

    @property
    def cross_entropy_increase(self) -> float | None:
        """What replacing costs in predicting the text, nats a token."""
        if self.cross_entropy is None or self.cross_entropy_replaced is None:
            return None
        return self.cross_entropy_replaced - self.cross_entropy

    @property
    def replaced(self) -> tuple[LayerAgreement, ...]:
        """The layers that have a transcoder."""
        return tuple(layer for layer in self.layers if layer.nmse is not None)

    @property
    def nmse(self) -> float:
        """Mean normalised MSE of the layers that have a transcoder."""
        found = [layer.nmse for layer in self.layers if layer.nmse is not None]
        return sum(found) / len(found)


def measure(
    model: ReplacementModel,
    texts: Iterable[str | Sequence[int]],
    tokens: int | None = None,
    positions: Positions = "all",
    keep_first: bool = True,
    progress: Progress | None = None,
) -> Agreement:
    """Measure a replacement model on texts.

    Args:
        texts: texts, or token ids taken as they are.
        tokens: stop after so many positions; None for all.
        positions: "all", or "last" for the last of each text only.
        keep_first: leave position 0 out of every figure and keep its MLPs.
        progress: called with (share done, message).

    Raises:
        InputError: nothing to measure, e.g. texts of one token.

    Example:
        >>> import circuit_tracer as ct
        >>> measure(ct.load(), ["The opposite of small is"]).positions
        5
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens must be at least 1, not {tokens}")
    cut = list(pieces(model, texts))
    wanted = sum(len(piece) for piece in cut)
    wanted = wanted if tokens is None else min(wanted, tokens)
    sums = _Sums(model)
    with torch.no_grad():
        for ids in cut:
            left = None if tokens is None else tokens - sums.positions
            if left is not None and left < 1:
                break
            sums.add(ids, _chosen(len(ids), positions, keep_first, left), keep_first)
            if progress is not None:
                progress(min(1.0, sums.positions / wanted), f"{sums.positions:,} tokens")
    if sums.positions < 2:
        raise InputError(
            f"{sums.positions} tokens are too few to measure; give longer texts, or more of them "
            "(the first token of each is left out)"
        )
    return sums.agreement()


def pieces(
    model: ReplacementModel, texts: Iterable[str | Sequence[int]]
) -> Iterator[Int[Tensor, " position"]]:
    """Token ids of every text, in pieces that the model can read at once."""
    window = min(WINDOW, model.adapter.context or WINDOW)
    special = set(model.tokenizer.all_special_ids)
    for text in texts:
        if not isinstance(text, str):
            yield model.tokenize(text)
            continue
        ids = list(model.tokenizer(text)["input_ids"]) if text.strip() else []
        starts = ("bos_token_id", "pad_token_id", "eos_token_id")
        known = [getattr(model.tokenizer, name, None) for name in starts]
        lead = [token for token in [*ids[:1], *known] if token in special][:1]
        body = ids[1:] if ids[:1] == lead else ids
        step = window - len(lead)
        for start in range(0, len(body), step):
            yield model.tokenize([*lead, *body[start : start + step]])


def _chosen(
    length: int, positions: Positions, keep_first: bool, left: int | None
) -> Int[Tensor, " chosen"]:
    """Positions of a piece that are measured."""
    chosen = torch.arange(int(keep_first), length)
    return (chosen[-1:] if positions == "last" else chosen)[:left]


def _exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@dataclass
class _Layer:
    """Running sums of one layer."""

    fired: Tensor
    mean: Tensor
    error: float = 0.0
    square: float = 0.0
    active: int = 0


@dataclass
class _Sums:
    """Running sums over texts."""

    model: ReplacementModel
    positions: int = 0
    texts: int = 0
    followed: int = 0
    same: int = 0
    kl: float = 0.0
    real: float = 0.0
    replaced: float = 0.0
    layers: list[_Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        for layer in range(self.model.adapter.n_layers):
            features = len(self.model.transcoders.layer(layer).encoder)
            fired = torch.zeros(features, dtype=torch.bool)
            self.layers.append(_Layer(fired, torch.zeros(self.model.adapter.d_model).double()))

    def add(self, ids: Tensor, chosen: Tensor, keep_first: bool) -> None:
        """One piece of text."""
        if not len(chosen):
            return
        model, adapter = self.model, self.model.adapter
        forward = model.run(ids)
        kept = torch.zeros(len(ids), dtype=torch.bool)
        kept[0] = keep_first
        with watched(adapter.model), spliced(adapter, model.transcoders, kept):
            output = adapter.model(input_ids=ids[None].to(adapter.device), use_cache=False)
        self._layers(forward, chosen)
        self._outputs(forward.logits, output.logits[0].to(forward.logits.device), ids, chosen)
        self.positions += len(chosen)
        self.texts += 1

    def _layers(self, forward: Forward, chosen: Tensor) -> None:
        """Reconstructions on the model's own activations."""
        transcoders = self.model.transcoders
        among = torch.zeros(len(forward.token_ids), dtype=torch.bool)
        among[chosen] = True
        encoded = {}
        for layer, x in enumerate(forward.mlp_inputs):
            cells, values = transcoders.encode(layer, x)
            encoded[layer] = cells, values
            here, output = self.layers[layer], forward.mlp_outputs[layer]
            wrong = output - reconstruct(transcoders, layer, encoded, x)
            fired = cells.cpu()[among[cells[:, 0].cpu()], 1]
            here.fired[fired] = True
            here.active += len(fired)
            here.error += float(_exact(wrong[chosen]).square().sum())
            here.square += float(_exact(output[chosen]).square().sum())
            here.mean += _exact(output[chosen]).sum(0).cpu()

    def _outputs(
        self,
        real: Float[Tensor, "position vocabulary"],
        replaced: Float[Tensor, "position vocabulary"],
        ids: Tensor,
        chosen: Tensor,
    ) -> None:
        exact = torch.promote_types(real.dtype, torch.float32)
        logs = real[chosen].to(exact).log_softmax(-1)
        new = replaced[chosen].to(exact).log_softmax(-1)
        self.same += int((logs.argmax(-1) == new.argmax(-1)).sum())
        self.kl += float((logs.exp() * (logs - new)).sum())
        followed = chosen < len(ids) - 1
        follows = ids[chosen[followed] + 1].to(logs.device)[:, None]
        followed = followed.to(logs.device)
        self.followed += len(follows)
        self.real -= float(logs[followed].gather(1, follows).sum())
        self.replaced -= float(new[followed].gather(1, follows).sum())

    def agreement(self) -> Agreement:
        model = self.model
        return Agreement(
            model=model.adapter.name,
            transcoders=model.transcoders.name,
            kind=model.transcoders.kind,
            texts=self.texts,
            positions=self.positions,
            layers=tuple(self._layer(layer) for layer in range(len(self.layers))),
            top1=self.same / self.positions,
            kl=self.kl / self.positions,
            cross_entropy=self.real / self.followed if self.followed else None,
            cross_entropy_replaced=self.replaced / self.followed if self.followed else None,
        )

    def _layer(self, layer: int) -> LayerAgreement:
        here = self.layers[layer]
        l0 = here.active / self.positions
        if layer not in self.model.transcoders.present:
            return LayerAgreement(layer, 0, None, l0, None)
        spread = here.square - float(here.mean.square().sum()) / self.positions
        nmse = here.error / max(spread, 1e-30)  # a layer may give the same everywhere
        dead = 1 - float(here.fired.double().mean())
        return LayerAgreement(layer, len(here.fired), nmse, l0, dead)
