"""Tensors in memory: a plain dict, named as in our folder, checked as files are.

    {"layer_0": {"W_enc": (F, D), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}, "layer_3": {…}}

Keys may also be layer numbers. A layer may hold `threshold` (JumpReLU: one number, or one a
feature), `k` (TopK) and `W_skip` (D, D), used as x @ W_skip.T. Decoders with three axes,
(F, L - layer, D), make it a cross-layer set. Layers that are not there have no features. `read`
and `write` name the sites; without them they are `mlp.hook_in` and `mlp.hook_out`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.sites import read_site, write_site
from circuit_tracer.transcoders.formats.tensors import checked, jump_relu, require

NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec")
OPTIONAL = ("threshold", "k", "W_skip")
NAME = "tensors in memory"


class _Layer:
    """One layer's tensors; answers as a file does (`tensors.Tensors`)."""

    def __init__(self, key: Any, tensors: Any):
        self.path = f"{key!r} of the {NAME}"
        if not isinstance(tensors, Mapping):
            raise TranscoderError(f"{self.path} should be a dict of tensors, not {tensors!r:.60}.")
        self.names = frozenset(tensors)
        unknown = sorted(map(str, self.names - {*NEEDED, *OPTIONAL}))
        if unknown:
            raise TranscoderError(
                f"{self.path} holds {', '.join(unknown)}, which this tool does not know. Expected: "
                f"{', '.join(NEEDED)}; optional: {', '.join(OPTIONAL)}."
            )
        self._tensors = tensors

    def raw(self, name: str) -> Tensor:
        """The tensor as it is."""
        require(self, name)
        tensor = self._tensors[name]
        if not isinstance(tensor, torch.Tensor):
            raise TranscoderError(
                f"{name} in {self.path} is a {type(tensor).__name__}; expected a torch tensor."
            )
        return tensor.detach()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.raw(name).shape)

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        tensor = checked(self.raw(name), name, self.path, shape)
        if name != "threshold" and not torch.isfinite(tensor).all():
            raise TranscoderError(f"{name} in {self.path} holds NaN or infinite values.")
        return tensor

    def activation(self, n_features: int) -> Activation:
        """TopK where there is a k, JumpReLU where there are thresholds, else ReLU."""
        if {"k", "threshold"} <= self.names:
            raise TranscoderError(f"{self.path} holds k and threshold; keep the one that is meant.")
        if "threshold" in self.names:
            return jump_relu(self, "threshold", n_features)
        if "k" not in self.names:
            return Activation("relu")
        k = self._tensors["k"]
        whole = k.item() if isinstance(k, torch.Tensor) and k.numel() == 1 else k
        if not isinstance(whole, int) or isinstance(whole, bool) or whole < 1:
            raise TranscoderError(f"k in {self.path} should be one whole number above 0.")
        return Activation("topk", k=whole)


def from_tensors(tensors: Mapping[Any, Any], name: str = NAME) -> TranscoderSet:
    """A set of the tensors in a dict; they are checked now and shared, not copied.

    Args:
        tensors: layer → its tensors, as this module's docstring says; optionally `read`, `write`.
        name: what the set is called in messages and provenance.

    Raises:
        TranscoderError: a key, type, shape or value that is not as it should be.

    Example:
        >>> one = {"W_enc": torch.ones(6, 4), "W_dec": torch.ones(6, 4), "b_enc": torch.ones(6),
        ...        "b_dec": torch.ones(4)}
        >>> from_tensors({"layer_2": one}).present
        (2,)
    """
    read = read_site(str(tensors.get("read", "mlp.hook_in")), f"read in the {NAME}")
    write = write_site(str(tensors.get("write", "mlp.hook_out")), f"write in the {NAME}")
    keys = [key for key in tensors if key not in ("read", "write")]
    files = {_number(key): _Layer(key, tensors[key]) for key in keys}
    if not files or len(files) < len(keys):
        raise TranscoderError(
            f"the {NAME} should have one entry a layer, such as 'layer_0'; got {keys}."
        )
    across = {len(file.shape("W_dec")) == 3 for file in files.values()}
    if len(across) > 1:
        raise TranscoderError(f"the {NAME} mix per-layer decoders (two axes) and cross-layer ones.")
    covered = tuple(sorted(files))
    n_layers = covered[-1] + 1
    if across == {True}:
        n_layers = covered[0] + files[covered[0]].shape("W_dec")[1]
    made = {layer: _weights(files[layer], layer, n_layers, across == {True}) for layer in covered}
    kind: Literal["plt", "clt"] = "clt" if across == {True} else "plt"
    return TranscoderSet(kind, read, write, n_layers, made.__getitem__, name, covered)


def _number(key: Any) -> int:
    match = re.fullmatch(r"(?:layer_)?([0-9]{1,4})", str(key))
    if match is None:
        raise TranscoderError(
            f"the {NAME} have a key {key!r}; expected 'layer_0', 'layer_1' … or 0, 1 …, and "
            "optionally 'read' and 'write'."
        )
    return int(match[1])


def _weights(file: _Layer, layer: int, n_layers: int, across: bool) -> LayerWeights:
    encoder = file.get("W_enc", (-1, -1))
    n_features, width = encoder.shape
    shape = (n_features, n_layers - layer, width) if across else (n_features, width)
    table = file.get("W_dec", shape)
    return LayerWeights(
        encoder=encoder,
        encoder_bias=file.get("b_enc", (n_features,)),
        decoders=table.unbind(1) if across else (table,),
        output_bias=file.get("b_dec", (width,)),
        activation=file.activation(n_features),
        skip=file.get("W_skip", (width, width)) if "W_skip" in file.names else None,
    )
