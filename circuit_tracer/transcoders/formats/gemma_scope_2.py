"""GemmaScope 2: safetensors of JumpReLU transcoders for Gemma 3, per layer and cross-layer.

    layer_{i}_width_*_l0_*/params.safetensors     per layer, config.json beside it
    params_layer_{i}.safetensors                  cross-layer, one config.json for all
        w_enc (D,F)  w_dec (F,D), cross-layer (F,L,D)  b_enc (F)  b_dec (D)  threshold (F)
        optional affine_skip_connection (D,D), used as x @ skip

A cross-layer decoder has a row for every layer, zero before its own: those rows are dropped. The
sites are named in config.json by module (`hf_hook_point_in`, `hf_hook_point_out`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import LayerWeights, ReadSite, TranscoderSet, WriteSite
from circuit_tracer.transcoders.formats.config import read_json
from circuit_tracer.transcoders.formats.placement import by_layer, one_each
from circuit_tracer.transcoders.formats.sites import read_site, write_site
from circuit_tracer.transcoders.formats.tensors import TensorFile, jump_relu

PER_LAYER = r"(?:^|/)layer_(\d+)[^/]*/params\.safetensors$"
CROSS_LAYER = r"(?:^|/)params_layer_(\d+)\.safetensors$"
LOOKED_AT = 16  # features whose decoder rows before their own layer are checked to be zero


class Settings(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    hf_hook_point_in: str | list[str]
    hf_hook_point_out: str | list[str]
    architecture: Literal["jump_relu"] = "jump_relu"


def read_layer(path: Path, layer: int, n_layers: int, kind: Literal["plt", "clt"]) -> LayerWeights:
    """One file as a layer; encoder and decoders are views of the mapped file."""
    file = TensorFile(path)
    encoder_bias, output_bias = file.get("b_enc", (-1,)), file.get("b_dec", (-1,))
    n_features, width = len(encoder_bias), len(output_bias)
    encoder = file.get("w_enc", (width, n_features)).T
    decoders: tuple[Tensor, ...]
    if kind == "plt":
        decoders = (file.get("w_dec", (n_features, width)),)
    else:
        table = file.get("w_dec", (n_features, n_layers, width))
        if table[:LOOKED_AT, :layer].any():
            raise TranscoderError(
                f"w_dec in {path} writes to layers before its own, {layer}: the file belongs to "
                "another layer. Check the order of the files."
            )
        decoders = table.unbind(1)[layer:]
    skip = "affine_skip_connection"
    return LayerWeights(
        encoder=encoder,
        encoder_bias=encoder_bias,
        decoders=decoders,
        output_bias=output_bias,
        activation=jump_relu(file, "threshold", n_features),
        skip=file.get(skip, (width, width)).T if skip in file.names else None,
    )


def is_set(folder: Path) -> bool:
    """Whether the folder holds files named like these."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    return any(re.search(PER_LAYER, name) or re.search(CROSS_LAYER, name) for name in names)


def open_set(folder: Path, name: str) -> TranscoderSet:
    """Open a folder. Raises TranscoderError if a layer has several files, or no sites.

    Of a cross-layer set, whose features write to all later layers, every layer must be there.
    """
    across = by_layer(folder, folder.rglob("*.safetensors"), CROSS_LAYER)
    within = by_layer(folder, folder.rglob("*.safetensors"), PER_LAYER)
    if across and within:
        raise TranscoderError(
            f"{folder} holds per-layer and cross-layer transcoders; give the folder of one of them."
        )
    kind: Literal["plt", "clt"] = "clt" if across else "plt"
    what = "params_layer_0.safetensors …" if across else "layer_0_…/params.safetensors …"
    files = one_each(folder, across or within, what)
    missing = sorted(set(range(max(files))) - set(files)) if across else []
    if missing:
        raise TranscoderError(
            f"{folder} should hold {what} for every layer from 0 on; "
            f"missing: {', '.join(map(str, missing))}. Fetch the folder again."
        )
    read, write = _sites(list(files.values()))
    return TranscoderSet(
        kind=kind,
        read=read,
        write=write,
        n_layers=max(files) + 1,
        covered=None if across else tuple(files),
        source=lambda layer: read_layer(files[layer], layer, len(files), kind),
        name=name,
    )


def _sites(files: list[Path]) -> tuple[ReadSite, WriteSite]:
    """The sites that every config.json beside the files names."""
    found = set()
    for path in dict.fromkeys(file.with_name("config.json") for file in files):
        if not path.is_file():
            raise TranscoderError(
                f"{path} is missing, so nothing says where these transcoders read and write. Fetch "
                "it, or name files, feature_input_hook and feature_output_hook in a config.yaml."
            )
        settings = read_json(path, Settings)
        points = (settings.hf_hook_point_in, settings.hf_hook_point_out)
        reads, writes = ([point] if isinstance(point, str) else point for point in points)
        found |= {(read_site(r, path), write_site(w, path)) for r in reads for w in writes}
    if len(found) != 1:
        raise TranscoderError(f"the layers in {files[0].parent} do not read and write alike.")
    return found.pop()
