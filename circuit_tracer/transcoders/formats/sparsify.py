"""sparsify (EleutherAI): one folder a module, TopK transcoders.

    layers.{i}.mlp/cfg.json           transcode: true, k, activation: topk
    layers.{i}.mlp/sae.safetensors    encoder.weight (F,D)  encoder.bias (F)  W_dec (F,D)  b_dec (D)
                                      optional W_skip (D,D), used as x @ W_skip.T

They read what goes into the MLP module and predict what comes out of it. Without `transcode` a
folder is an autoencoder, which also subtracts b_dec from its input: refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.config import read_json
from circuit_tracer.transcoders.formats.placement import by_layer, one_each
from circuit_tracer.transcoders.formats.tensors import TensorFile

WEIGHTS = "sae.safetensors"
LAYER = r"(?:^|[/.])(?:layers|h|blocks)\.(\d+)\.mlp/sae\.safetensors$"


class Settings(BaseModel):
    """`cfg.json`."""

    model_config = ConfigDict(extra="allow")

    k: int = Field(gt=0)
    activation: Literal["topk"] = "topk"
    transcode: bool = False
    normalize_io: Literal[False] = False


def read_layer(path: Path) -> LayerWeights:
    """One `sae.safetensors` with the `cfg.json` beside it."""
    settings = read_json(path.with_name("cfg.json"), Settings)
    if not settings.transcode:
        raise TranscoderError(
            f"{path.with_name('cfg.json')} does not say transcode: true, so this is an autoencoder "
            "of one site. Pass transcoders; if these are some, say so in that file."
        )
    file = TensorFile(path)
    encoder = file.get("encoder.weight", (-1, -1))
    n_features, width = encoder.shape
    return LayerWeights(
        encoder=encoder,
        encoder_bias=file.get("encoder.bias", (n_features,)),
        decoders=(file.get("W_dec", (n_features, width)),),
        output_bias=file.get("b_dec", (width,)),
        activation=Activation("topk", k=settings.k),
        skip=file.get("W_skip", (width, width)) if "W_skip" in file.names else None,
    )


def is_set(folder: Path) -> bool:
    """Whether the folder holds `sae.safetensors` files with their `cfg.json`."""
    return any(path.with_name("cfg.json").is_file() for path in folder.rglob(WEIGHTS))


def open_set(folder: Path, name: str) -> TranscoderSet:
    """Open a folder. Raises TranscoderError for modules other than MLPs."""
    paths = list(folder.rglob(WEIGHTS))
    others = [p for p in paths if not re.search(LAYER, p.relative_to(folder).as_posix())]
    if others:
        raise TranscoderError(
            f"{others[0].parent} belongs to a module that is not a whole MLP. Transcoders replace "
            "MLPs: the folders should be called layers.0.mlp, layers.1.mlp … (or h.0.mlp …)."
        )
    files = one_each(folder, by_layer(folder, paths, LAYER), "layers.0.mlp/sae.safetensors")
    return TranscoderSet(
        kind="plt",
        read="mlp.hook_in",
        write="mlp.hook_out",
        n_layers=max(files) + 1,
        covered=tuple(files),
        source=lambda layer: read_layer(files[layer]),
        name=name,
    )
