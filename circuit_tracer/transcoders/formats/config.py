"""The small text files beside weights: `config.yaml`, and the JSON that other tools write.

They come from strangers and decide how numbers are read, so each is parsed into a typed model that
refuses what it does not know, with the file and the field at fault.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import ReadSite, WriteSite

NAME = "config.yaml"
UNSAID = {"facebook/crv-8b-instruct-transcoders": 128}
"""k of public TopK sets whose config does not say it."""


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
    transcoders: list[str] | None = Field(default=None, min_length=1)
    layers: list[int] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _layers_count_up(self) -> FolderConfig:
        layers = self.layers
        if layers is None:
            return self
        if layers != sorted(set(layers)) or layers[0] < 0:
            raise ValueError("layers should be numbers from 0 on, each once, ascending")
        if self.transcoders is not None and len(self.transcoders) != len(layers):
            raise ValueError(
                f"layers names {len(layers)} layers and transcoders {len(self.transcoders)} files; "
                "they should go in pairs"
            )
        return self

    @model_validator(mode="after")
    def _topk_has_k(self) -> FolderConfig:
        if self.activation == "topk" and self.k is None:
            raise ValueError("activation topk needs k, the number of features kept")
        return self


Parsed = TypeVar("Parsed", bound=BaseModel)


def read_config(folder: Path, name: str = "") -> FolderConfig:
    """Parse `config.yaml` of the set called `name`.

    Raises:
        TranscoderError: not there, or not what it should be; says which field is at fault.
    """
    path = folder / NAME
    if not path.is_file():
        raise TranscoderError(
            f"{folder} has no config.yaml, so it is not a transcoder folder. It should hold "
            "config.yaml beside layer_0.safetensors … (per-layer) or W_enc_0.safetensors … "
            "(cross-layer)."
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise TranscoderError(f"{path} is not valid YAML: {error}") from error
    known = UNSAID.get(name.partition("@")[0])
    if known and isinstance(fields, dict) and fields.get("activation") == "topk":
        fields = {"k": known} | fields
    return _checked(FolderConfig, fields, path)


def read_json(path: Path, model: type[Parsed]) -> Parsed:
    """Parse a JSON file. Raises TranscoderError that names the field at fault."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TranscoderError(f"{path} is not readable JSON: {error}") from error
    return _checked(model, fields, path)


def _checked(model: type[Parsed], fields: Any, path: Path) -> Parsed:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        )
        raise TranscoderError(f"{path} is not a transcoder config: {faults}") from error
