"""The bundled model: a small multilingual language model with its transcoders, ready to trace.

Everything here was made by `python -m circuit_tracer.bundled.recipe` from the tables in `data/`;
`weights/README.md` is its model card, with the figures measured on it.  This module only says
where things are; it imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

from .tables import LANGUAGES

VERSION = "1"

__all__ = ["LANGUAGES", "VERSION", "features_file", "model_dir", "transcoder_dir"]

_WEIGHTS = Path(__file__).parent / "weights"


def model_dir() -> Path:
    """The folder of the language model and its tokenizer, in Hugging Face format."""
    return _WEIGHTS / "model"


def transcoder_dir(kind: str) -> Path:
    """The folder of its transcoders: kind "plt" (per layer) or "clt" (cross-layer)."""
    if kind not in ("plt", "clt"):
        raise ValueError(f'transcoders come as "plt" or "clt"; got {kind!r}')
    return _WEIGHTS / kind


def features_file(kind: str) -> Path:
    """The store that describes the features of its transcoders: kind "plt" or "clt"."""
    transcoder_dir(kind)
    return _WEIGHTS / "features" / f"{kind}.sqlite"
