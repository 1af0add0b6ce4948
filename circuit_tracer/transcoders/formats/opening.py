"""Opening a folder of transcoders, whatever wrote it.

One table: the files a format is known by, and the function that opens it. The first that is found
decides; `config.yaml` comes before all, because a user writes it to say which files are meant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import TranscoderSet
from circuit_tracer.transcoders.formats import gemma_scope, gemma_scope_2, saelens, sparsify
from circuit_tracer.transcoders.formats.config import NAME
from circuit_tracer.transcoders.formats.folder import Fetch, open_folder


@dataclass(frozen=True)
class Format:
    """A format: what it is called, the files it is known by, how it is told and opened."""

    name: str
    files: str
    found: Callable[[Path], bool]
    open: Callable[[Path, str], TranscoderSet]


FORMATS = (
    Format("GemmaScope", "layer_0/…/params.npz", gemma_scope.is_set, gemma_scope.open_set),
    Format("SAELens", f"*/cfg.json + {saelens.WEIGHTS}", saelens.is_set, saelens.open_set),
    Format(
        "sparsify",
        f"layers.0.mlp/cfg.json + {sparsify.WEIGHTS}",
        sparsify.is_set,
        sparsify.open_set,
    ),
    Format(
        "GemmaScope 2",
        "layer_0_…/params.safetensors or params_layer_0.safetensors, with config.json",
        gemma_scope_2.is_set,
        gemma_scope_2.open_set,
    ),
)
"""Formats told by their files, where there is no `config.yaml`."""


def open_set(folder: Path, name: str | None = None, fetch: Fetch | None = None) -> TranscoderSet:
    """Open the transcoders in a folder. Weights stay on disk until they are used.

    Args:
        name: what the set is called in messages and provenance; the folder's path by default.
        fetch: brings a file that `config.yaml` names as `hf://…`.

    Raises:
        TranscoderError: no known files, files that contradict each other, or several choices.
    """
    if (folder / NAME).is_file():
        return open_folder(folder, name, fetch)
    for known in FORMATS:
        if known.found(folder):
            return known.open(folder, name or str(folder))
    looked_for = "".join(f"\n  {known.name}: {known.files}" for known in FORMATS)
    raise TranscoderError(
        f"{folder} has no config.yaml and no transcoder files this version knows. Looked for:"
        "\n  the reference tool's folder: config.yaml + layer_0.safetensors … or "
        f"W_enc_0.safetensors …{looked_for}"
    )
