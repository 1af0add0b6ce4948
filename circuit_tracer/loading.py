"""`load`: one call from names to a `ReplacementModel`."""

from __future__ import annotations

from pathlib import Path

from circuit_tracer.bundled import model_dir, transcoder_dir
from circuit_tracer.errors import InputError
from circuit_tracer.models.load import open_model, open_transcoders, resolve_device, resolve_dtype
from circuit_tracer.replacement import ReplacementModel

BUNDLED = "bundled"
BUNDLED_SETS = ("plt", "clt")


def load(
    model: str | Path | None = None,
    transcoders: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> ReplacementModel:
    """A model with its transcoders.

    Args:
        model: a hub id, `id@revision`, or a folder; None for the bundled model (no network).
        transcoders: likewise. For the bundled model "plt" (the default) or "clt" name its own sets.
        device: "auto" (cuda where there is one), "cpu", "cuda", "cuda:1" …
        dtype: "auto" (float32 on a CPU, the checkpoint's on a GPU), "float32", "bfloat16" …
            Edges are accumulated in float32, or float64 for a float64 model.

    Raises:
        InputError: a name that is not there, a model without transcoders.
        ModelError, TranscoderError: files that cannot be read or do not fit each other.

    Example:
        >>> import circuit_tracer as ct
        >>> model = ct.load()
        >>> model.adapter.n_layers > 0
        True
    """
    bundled = model is None or str(model) == BUNDLED
    if not bundled and transcoders is None:
        raise InputError(
            f"{model} needs transcoders trained on it: pass transcoders= (--transcoders), "
            "a hub id or a folder"
        )
    place = resolve_device(device)
    choice = str(transcoders or BUNDLED_SETS[0])
    own = bundled and choice in BUNDLED_SETS
    found = open_transcoders(str(transcoder_dir(choice)) if own else choice)
    adapter, tokenizer = open_model(
        str(model_dir()) if bundled else str(model), place, resolve_dtype(dtype, place)
    )
    if bundled:
        adapter.name = BUNDLED
    if own:
        found = found.named(f"{BUNDLED} {choice}")
    return ReplacementModel(adapter, tokenizer, found)
