"""SAELens: one folder a transcoder, which says in `cfg.json` what it reads and predicts.

    */cfg.json                  architecture, hook_name and hook_name_out (there or in metadata)
    */sae_weights.safetensors   W_enc (D,F)  W_dec (F,D)  b_enc (F)  b_dec (D)
                                threshold (F) for jumprelu_*, W_skip (D,D) for *skip_transcoder

The skip is used as x @ W_skip.T. SAELens rectifies before it compares with the threshold, so a
threshold below zero means zero. `hook_mlp_in` stands for two different tensors in the files people
share; where a module is given beside it (`hf_hook_name`), that name is believed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.config import read_json
from circuit_tracer.transcoders.formats.placement import inside, one_each
from circuit_tracer.transcoders.formats.sites import layer_of, read_site, write_site
from circuit_tracer.transcoders.formats.tensors import TensorFile, jump_relu

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LAYOUT = "6.0.0"  # of the config: older ones have no metadata, and SAELens would drop it
AMBIGUOUS = ".hook_mlp_in"
Architecture = Literal[
    "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"
]


class Hooks(BaseModel):
    """Where a transcoder reads and writes."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    hook_name: str | None = None
    hook_name_out: str | None = None
    hf_hook_name: str | None = None
    hf_hook_name_out: str | None = None


class Settings(Hooks):
    """`cfg.json`."""

    architecture: Architecture
    activation_fn: Literal["relu"] = "relu"
    activation_fn_str: Literal["relu"] = "relu"
    normalize_activations: Literal["none"] | None = None
    reshape_activations: Literal["none"] | None = None
    metadata: Hooks = Field(default_factory=Hooks)

    def hooks(self) -> tuple[str, str]:
        """Names of the places read and written, "" where there is none."""
        here, inner = self, self.metadata
        read = inner.hook_name or here.hook_name or ""
        by_module = inner.hf_hook_name or here.hf_hook_name
        if by_module and (not read or read.endswith(AMBIGUOUS)):
            read = by_module
        named = (inner.hook_name_out, here.hook_name_out)
        by_modules = (inner.hf_hook_name_out, here.hf_hook_name_out)
        return read, next(filter(None, named + by_modules), "")


def read_layer(path: Path, settings: Settings) -> LayerWeights:
    """One `sae_weights.safetensors`; the encoder is a transposed view of the mapped file."""
    file = TensorFile(path)
    encoder_bias, output_bias = file.get("b_enc", (-1,)), file.get("b_dec", (-1,))
    n_features, width = len(encoder_bias), len(output_bias)
    skips = "skip" in settings.architecture
    if "W_skip" in file.names and not skips:
        raise TranscoderError(
            f"{file.path} has a skip connection, but its cfg.json says {settings.architecture}, "
            "which has none: it should name a skip_transcoder, or the tensor should go."
        )
    return LayerWeights(
        encoder=file.get("W_enc", (width, n_features)).T,
        encoder_bias=encoder_bias,
        decoders=(file.get("W_dec", (n_features, width)),),
        output_bias=output_bias,
        activation=_activation(file, n_features, settings.architecture),
        skip=file.get("W_skip", (width, width)) if skips else None,
    )


def _activation(file: TensorFile, n_features: int, architecture: Architecture) -> Activation:
    if architecture.startswith("jumprelu"):
        found = jump_relu(file, "threshold", n_features)
        assert found.threshold is not None
        below = bool((found.threshold < 0).any())
        return replace(found, threshold=found.threshold.clamp_min(0)) if below else found
    if "threshold" in file.names:
        raise TranscoderError(
            f"{file.path} has thresholds, but its cfg.json says {architecture}, which has none: "
            f"it should say jumprelu_{architecture}, or the tensor should go."
        )
    return Activation("relu")


def unlike(found: TranscoderSet) -> str | None:
    """Why SAELens cannot hold a set; None if it can."""
    if found.kind == "clt":
        return "it has no cross-layer transcoders"
    for activation in (found.layer(layer).activation for layer in found.present):
        if activation.kind == "topk":
            return "its transcoders are ReLU or JumpReLU, not TopK"
        if activation.threshold is not None and bool((activation.threshold < 0).any()):
            return "it rectifies before it compares, so no threshold is below zero there"
    return None


def described(found: TranscoderSet, layer: int, model_name: str) -> dict[str, Any]:
    """`cfg.json` of a layer."""
    weights = found.layer(layer)
    n_features, width = weights.encoder.shape
    kind = "jumprelu_" if weights.activation.kind == "jump_relu" else ""
    skip = "" if weights.skip is None else "skip_"
    return {
        "architecture": f"{kind}{skip}transcoder",
        "d_in": width,
        "d_sae": n_features,
        "d_out": len(weights.output_bias),
        "dtype": str(weights.encoder.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": LAYOUT,
            "model_name": model_name,
            "hook_name": f"blocks.{layer}.{found.read}",
            "hook_name_out": f"blocks.{layer}.{found.write}",
        },
    }


def tensors(weights: LayerWeights) -> dict[str, Tensor]:
    """What `WEIGHTS` holds of a layer, in SAELens' order of axes."""
    named = {
        "W_enc": weights.encoder.T,
        "b_enc": weights.encoder_bias,
        "W_dec": weights.decoders[0],
        "b_dec": weights.output_bias,
        "threshold": weights.activation.threshold,
        "W_skip": weights.skip,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def is_set(folder: Path) -> bool:
    """Whether the folder holds SAELens weights with their `cfg.json`."""
    return any(path.with_name(CONFIG).is_file() for path in folder.rglob(WEIGHTS))


def open_set(folder: Path, name: str) -> TranscoderSet:
    """Open a folder. Raises TranscoderError for hooks that cannot be traced."""
    found: dict[int, list[Path]] = {}
    settings: dict[Path, Settings] = {}
    sites = set()
    for path in sorted(folder.rglob(WEIGHTS)):
        path = inside(folder, path.relative_to(folder))
        config = path.with_name(CONFIG)
        settings[path] = read_json(config, Settings)
        read, write = settings[path].hooks()
        sites.add((read_site(read, config), write_site(write, config)))
        layer = layer_of(read)
        if layer is None or layer_of(write) not in (None, layer):
            raise TranscoderError(
                f"{config} reads {read!r} and predicts {write!r}: expected one layer, the same "
                "for both, such as blocks.0.ln2.hook_normalized and blocks.0.hook_mlp_out."
            )
        found.setdefault(layer, []).append(path)
    files = one_each(folder, found, f"a folder with cfg.json and {WEIGHTS}")
    if len(sites) > 1:
        raise TranscoderError(f"the layers in {folder} do not read and write alike: {sites}.")
    (read_at, write_at) = sites.pop()
    return TranscoderSet(
        kind="plt",
        read=read_at,
        write=write_at,
        n_layers=max(files) + 1,
        covered=tuple(files),
        source=lambda layer: read_layer(files[layer], settings[files[layer]]),
        name=name,
    )
