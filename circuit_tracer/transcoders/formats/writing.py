"""Writing a set as a folder (see `folder`), whole or not at all.

Every tensor keeps its numbers and its type; what other formats store transposed is turned round.
Layers are written one after another into a hidden folder beside the destination, which takes the
destination's name when everything is on disk.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file

from circuit_tracer.errors import OutputError, TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats import saelens
from circuit_tracer.transcoders.formats.config import NAME
from circuit_tracer.transcoders.formats.folder import THRESHOLD

Report = Callable[[float, str], None]


def write_folder(
    found: TranscoderSet,
    destination: Path,
    *,
    model_name: str = "",
    scan: str | list[str] | None = None,
    replace: bool = False,
    report: Report = lambda done, message: None,
) -> None:
    """Write a set as a folder that `open_folder` reads.

    Args:
        model_name: for the config: the model the set belongs to.
        scan: for the config: where its features are described.
        replace: put it in the place of a folder of transcoders that is already there.
        report: is told the share done, from 0 to 1, and what is being written.

    Raises:
        OutputError: the destination is taken or cannot be written; nothing is changed.
        TranscoderError: a layer cannot be read; nothing is written.
    """

    def fill(made: Path) -> None:
        _write_layers(found, made, report)
        config = _config(found, model_name, scan)
        (made / NAME).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    _write(destination, replace, fill)


def write_saelens(
    found: TranscoderSet,
    destination: Path,
    *,
    model_name: str = "",
    replace: bool = False,
    report: Report = lambda done, message: None,
) -> None:
    """Write a set as SAELens does, a folder a layer; for the arguments see `write_folder`.

    Raises:
        OutputError: SAELens has nothing like it, or as `write_folder`.
    """
    why = saelens.unlike(found)
    if why:
        raise OutputError(f"SAELens cannot hold these transcoders: {why}")

    def fill(made: Path) -> None:
        for number, layer in enumerate(found.present):
            report(number / len(found.present), f"layer {layer} of {found.n_layers}")
            place = made / f"layer_{layer}"
            place.mkdir()
            config = saelens.described(found, layer, model_name)
            (place / saelens.CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            tensors = saelens.tensors(found.layer(layer))
            owned = {name: _own(tensor) for name, tensor in tensors.items()}
            save_file(owned, place / saelens.WEIGHTS)

    _write(destination, replace, fill)


def _write(destination: Path, replace: bool, fill: Callable[[Path], None]) -> None:
    """Put a folder that `fill` fills at a destination, whole or not at all."""
    check_destination(destination, replace)
    target = destination.resolve()
    made = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        made.mkdir()
        fill(made)
        _move(made, target)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {destination}: {error}. Choose another place or make room; "
            "nothing was changed."
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check_destination(destination: Path, replace: bool) -> None:
    """Raise OutputError unless a folder may be put at `destination`."""
    if not destination.resolve().parent.is_dir():
        raise OutputError(f"there is no folder {destination.parent} to put it in; create it first")
    if not destination.exists() and not destination.is_symlink():
        return
    if not replace:
        raise OutputError(f"{destination} exists; name another folder, or --force to replace it")
    if not _replaceable(destination):
        raise OutputError(
            f"{destination} is not a folder of transcoders (it has no {NAME}), so it is not "
            "replaced; name another folder"
        )


def _replaceable(folder: Path) -> bool:
    """Whether a folder has a set's config, or holds SAELens' layers and nothing else."""
    if (folder / NAME).is_file():
        return True
    layers = list(folder.iterdir()) if folder.is_dir() else []
    return bool(layers) and all((layer / saelens.WEIGHTS).is_file() for layer in layers)


def unlike_reference(found: TranscoderSet) -> str | None:
    """Why the reference tool would read a folder of this set as something else; None if not."""
    if len(found.present) < found.n_layers or found.present[0] > 0:
        return "it wants a transcoder in every layer"
    layers = [found.layer(layer) for layer in range(found.n_layers)]
    kinds = {layer.activation.kind for layer in layers}
    if "topk" in kinds:
        return "it reads TopK as ReLU (up to its version 0.5.0)"
    if found.kind == "clt" and any(layer.skip is not None for layer in layers):
        return "it drops the skip connections of cross-layer transcoders"
    if len({len(layer.encoder) for layer in layers}) > 1:
        return "it wants as many features in every layer"
    if len({(layer.activation.kind, layer.activation.k) for layer in layers}) > 1:
        return "it wants the same activation function, and the same k, in every layer"
    return None


def _move(made: Path, target: Path) -> None:
    """Give the finished folder its name; a folder that had it goes when the new one is there."""
    if not target.exists():
        made.rename(target)
        return
    old = made.with_suffix(".old")
    target.rename(old)
    try:
        made.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _config(found: TranscoderSet, model_name: str, scan: str | list[str] | None) -> dict[str, Any]:
    """`config.yaml`. The activation is named where it is the same in every layer."""
    config: dict[str, Any] = {
        "model_name": model_name,
        "model_kind": "transcoder_set" if found.kind == "plt" else "cross_layer_transcoder",
        "feature_input_hook": found.read,
        "feature_output_hook": found.write,
        "scan": scan,
    }
    kinds, kept = _activations(found)
    if len(kinds) == 1 and len(kept) == 1:
        config["activation"] = kinds.pop()
        if config["activation"] == "topk":
            config["k"] = kept.pop()
    if found.present != tuple(range(found.n_layers)):
        config["layers"] = list(found.present)
    return config


def _activations(found: TranscoderSet) -> tuple[set[str], set[int]]:
    """Kinds of activation and values of k in a set."""
    used = [found.layer(layer).activation for layer in found.present]
    return {activation.kind for activation in used}, {activation.k for activation in used}


def _write_layers(found: TranscoderSet, folder: Path, report: Report) -> None:
    alike = all(len(values) == 1 for values in _activations(found))
    for number, layer in enumerate(found.present):
        report(number / len(found.present), f"layer {layer} of {found.n_layers}")
        weights = found.layer(layer)
        for name, tensors in _files(weights, layer, found.kind == "clt", alike).items():
            save_file(tensors, folder / name)


def _files(
    weights: LayerWeights, layer: int, cross_layer: bool, alike: bool
) -> dict[str, dict[str, Tensor]]:
    """Tensors of a layer by the file they go to."""
    end = f"_{layer}" if cross_layer else ""
    tensors = {
        f"W_enc{end}": weights.encoder,
        f"b_enc{end}": weights.encoder_bias,
        f"b_dec{end}": weights.output_bias,
    }
    activation = weights.activation
    if activation.kind == "mlp":
        raise TranscoderError("neurons are the model's own; there is nothing to write to files")
    if activation.kind == "jump_relu":
        if activation.threshold is None:
            raise TranscoderError(f"layer {layer} is JumpReLU and has no thresholds")
        tensors[f"threshold{end}" if cross_layer else THRESHOLD] = activation.threshold
    if activation.kind == "topk" and not alike:
        tensors[f"k{end}"] = torch.tensor(activation.k)
    if weights.skip is not None:
        tensors[f"W_skip{end}"] = weights.skip
    tensors = {name: _own(tensor) for name, tensor in tensors.items()}
    if not cross_layer:
        tensors["W_dec"] = _own(weights.decoders[0])
        return {f"layer_{layer}.safetensors": tensors}
    table = torch.stack([rows.detach().cpu() for rows in weights.decoders], 1)
    return {
        f"W_enc_{layer}.safetensors": tensors,
        f"W_dec_{layer}.safetensors": {f"W_dec_{layer}": table},
    }


def _own(tensor: Tensor) -> Tensor:
    """A copy that shares nothing, row by row, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
