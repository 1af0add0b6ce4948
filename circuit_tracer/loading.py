"""`load`: one call from names to a `ReplacementModel`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from circuit_tracer import neurons
from circuit_tracer.bundled import model_dir, transcoder_dir
from circuit_tracer.errors import InputError
from circuit_tracer.models.load import (
    local_folder,
    open_model,
    open_transcoders,
    resolve_device,
    resolve_dtype,
    split_revision,
)
from circuit_tracer.models.placement import BALANCED, Offload, check_choice
from circuit_tracer.models.presets import preset, transcoders_of
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.transcoders.base import TranscoderSet
from circuit_tracer.transcoders.formats.memory import from_tensors

BUNDLED = "bundled"
BUNDLED_SETS = ("plt", "clt")
Transcoders = str | Path | TranscoderSet | Mapping[Any, Any]


def load(
    model: str | Path | None = None,
    transcoders: Transcoders | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    offload: Offload = None,
) -> ReplacementModel:
    """A model with its transcoders.

    Args:
        model: a hub id, `id@revision`, a folder, or the one word of a preset (`circuit-tracer
            models` lists them; a folder of that name is written `./name`); None for the bundled
            model (no network).
        transcoders: likewise; None where the model is a preset's. For the bundled model "plt" (the
            default) or "clt" name its own sets. "neurons" takes the model's own MLP neurons as
            features. Also a `TranscoderSet`, or a dict of tensors (docs/transcoders.md).
        device: "auto" (cuda where there is one), "cpu", "cuda", "cuda:1", "mps" …, or "balanced",
            which spreads the layers over several CUDA devices.
        dtype: "auto" (float32 on a CPU, the checkpoint's on a GPU), "float32", torch.bfloat16 …
            Edges are accumulated in float32, or float64 for a float64 model.
        offload: "cpu" or "disk" keep the layers there and fetch one at a time; slower.

    Raises:
        InputError: a name that is not there, a model without transcoders, a placement that is
            not possible here.
        ModelError, TranscoderError: files that cannot be read or do not fit each other.

    Example:
        >>> import circuit_tracer as ct
        >>> model = ct.load()
        >>> model.adapter.n_layers > 0
        True
    """
    bundled = model is None or str(model) == BUNDLED
    given = None if transcoders is None else _given(transcoders)
    name, choice = _names(model, transcoders if given is None else given.name)
    place = resolve_device(device)
    check_choice(device, offload)
    own = bundled and given is None and choice in BUNDLED_SETS
    found = given
    if found is None and not neurons.named(choice):
        found = open_transcoders(str(transcoder_dir(choice)) if own else choice)
    adapter, tokenizer = open_model(
        str(model_dir()) if bundled else name,
        place,
        resolve_dtype(dtype, place),
        split=device == BALANCED,
        offload=offload,
    )
    if bundled:
        adapter.name = BUNDLED
    if found is None:
        found = neurons.neurons(adapter, choice)
    elif own:
        found = found.named(f"{BUNDLED} {choice}")
    return ReplacementModel(adapter, tokenizer, found.reaching(adapter.n_layers))


def _given(transcoders: Transcoders) -> TranscoderSet | None:
    """The set that was given itself, or made of the tensors that were; None for a name of one."""
    if isinstance(transcoders, TranscoderSet):
        return transcoders
    return from_tensors(transcoders) if isinstance(transcoders, Mapping) else None


def _names(model: str | Path | None, transcoders: Transcoders | None) -> tuple[str, str]:
    """(model, transcoders) with presets written out, and what was left out filled in."""
    if model is None or str(model) == BUNDLED:
        return BUNDLED, str(transcoders or BUNDLED_SETS[0])
    known = preset(model) if isinstance(model, str) else None
    name = str(model) if known is None else known.model
    usual = transcoders_of(name) if known is None else known.transcoders
    if transcoders is None and usual is None:
        local_folder(split_revision(name)[0])  # says so where there is no such folder
        raise InputError(
            f"{name} needs transcoders trained on it: pass transcoders= (--transcoders), a hub id "
            "or a folder; --transcoders neurons takes its own MLP neurons as features. "
            "`circuit-tracer models` lists public sets"
        )
    return name, str(transcoders or usual)
