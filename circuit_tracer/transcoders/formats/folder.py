"""The reference tool's folder, which is also ours: `config.yaml` beside safetensors files.

    config.yaml                 model_kind: transcoder_set | cross_layer_transcoder, hooks, scan,
                                optional activation: relu | topk (with k) | jump_relu
    layer_{i}.safetensors       PLT: W_enc (F,D) W_dec (F,D) b_enc (F) b_dec (D),
                                     optional activation_function.threshold, W_skip (D,D)
    W_enc_{i}.safetensors       CLT: W_enc_{i} (F,D) b_enc_{i} b_dec_{i}, optional threshold_{i}
    W_dec_{i}.safetensors       CLT: W_dec_{i} (F, L-i, D); [:, j] writes to layer i+j

Where no activation is named, a threshold tensor means JumpReLU and its absence ReLU. TopK sets
keep their k: it is in the config, and is never guessed away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import (
    Activation,
    LayerWeights,
    ReadSite,
    TranscoderSet,
    WriteSite,
)
from circuit_tracer.transcoders.formats.tensors import TensorFile

THRESHOLD = "activation_function.threshold"


class FolderConfig(BaseModel):
    """`config.yaml`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_kind: Literal["transcoder_set", "cross_layer_transcoder"]
    feature_input_hook: ReadSite
    feature_output_hook: WriteSite
    model_name: str = ""
    scan: str | list[str] | None = None
    activation: Literal["relu", "topk", "jump_relu"] | None = None
    k: int | None = Field(default=None, gt=0)
    transcoders: list[str] | None = None

    @model_validator(mode="after")
    def _topk_has_k(self) -> FolderConfig:
        if self.activation == "topk" and self.k is None:
            raise ValueError("activation topk needs k, the number of features kept")
        return self


def read_config(folder: Path) -> FolderConfig:
    """Parse `config.yaml`. Raises TranscoderError that names the field at fault."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise TranscoderError(
            f"{folder} has no config.yaml, so it is not a transcoder folder. It should hold "
            "config.yaml beside layer_0.safetensors … (per-layer) or W_enc_0.safetensors … "
            "(cross-layer)."
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        return FolderConfig.model_validate(fields)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TranscoderError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        )
        raise TranscoderError(f"{path} is not a transcoder config: {faults}") from error


def open_folder(folder: Path, name: str | None = None) -> TranscoderSet:
    """Open a folder. Reads headers only; weights stay on disk until they are used."""
    config = read_config(folder)
    plt = config.model_kind == "transcoder_set"
    files = _layer_files(folder, config) if plt else _numbered(folder, "W_enc_{}.safetensors")

    def source(layer: int) -> LayerWeights:
        if plt:
            return _per_layer(files[layer], config)
        return _cross_layer(folder, layer, len(files), config)

    return TranscoderSet(
        kind="plt" if plt else "clt",
        read=config.feature_input_hook,
        write=config.feature_output_hook,
        n_layers=len(files),
        source=source,
        name=name or str(folder),
    )


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """Files 0, 1, 2 … of a pattern, without gaps."""
    files: list[Path] = []
    while (path := folder / pattern.format(len(files))).exists():
        files.append(path)
    found = len(list(folder.glob(pattern.format("*"))))
    if not files or found != len(files):
        raise TranscoderError(
            f"{folder} should hold {pattern.format('0')}, {pattern.format('1')} … without gaps; "
            f"found {found}, of which {len(files)} count up from 0. Fetch the folder again."
        )
    return files


def _layer_files(folder: Path, config: FolderConfig) -> list[Path]:
    """Files of a per-layer set: named in the config, or counted up from layer_0."""
    if config.transcoders is None:
        return _numbered(folder, "layer_{}.safetensors")
    remote = [entry for entry in config.transcoders if entry.startswith("hf://")]
    if remote:
        raise TranscoderError(
            f"{folder}/config.yaml points at files on the hub ({remote[0]} …), which this version "
            "does not follow. Download them into the folder as layer_0.safetensors …"
        )
    return [folder / entry for entry in config.transcoders]


def _activation(
    file: TensorFile, threshold: str, n_features: int, config: FolderConfig
) -> Activation:
    if config.activation == "topk":
        return Activation("topk", k=config.k or 0)
    if threshold in file.names and config.activation != "relu":
        scalar = file.shape(threshold) in ((), (1,))
        return Activation("jump_relu", file.get(threshold, None if scalar else (n_features,)))
    if config.activation == "jump_relu":
        raise TranscoderError(f"{file.path} should hold {threshold!r}: its config says jump_relu.")
    return Activation("relu")


def _per_layer(path: Path, config: FolderConfig) -> LayerWeights:
    file = TensorFile(path)
    encoder = file.get("W_enc", (-1, -1))
    n_features, width = encoder.shape
    return LayerWeights(
        encoder=encoder,
        encoder_bias=file.get("b_enc", (n_features,)),
        decoders=(file.get("W_dec", (n_features, width)),),
        output_bias=file.get("b_dec", (width,)),
        activation=_activation(file, THRESHOLD, n_features, config),
        skip=file.get("W_skip", (width, width)) if "W_skip" in file.names else None,
    )


def _cross_layer(folder: Path, layer: int, n_layers: int, config: FolderConfig) -> LayerWeights:
    encoders = TensorFile(folder / f"W_enc_{layer}.safetensors")
    encoder = encoders.get(f"W_enc_{layer}", (-1, -1))
    n_features, width = encoder.shape
    decoders = TensorFile(folder / f"W_dec_{layer}.safetensors")
    table = decoders.get(f"W_dec_{layer}", (n_features, n_layers - layer, width))
    skip = f"W_skip_{layer}"
    return LayerWeights(
        encoder=encoder,
        encoder_bias=encoders.get(f"b_enc_{layer}", (n_features,)),
        decoders=table.unbind(1),
        output_bias=encoders.get(f"b_dec_{layer}", (width,)),
        activation=_activation(encoders, f"threshold_{layer}", n_features, config),
        skip=encoders.get(skip, (width, width)) if skip in encoders.names else None,
    )
