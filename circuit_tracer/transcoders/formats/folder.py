"""The reference tool's folder, which is also ours: `config.yaml` beside safetensors files.

    config.yaml                 model_kind: transcoder_set | cross_layer_transcoder, hooks, scan,
                                optional activation: relu | topk (with k) | jump_relu
    layer_{i}.safetensors       PLT: W_enc (F,D) W_dec (F,D) b_enc (F) b_dec (D),
                                     optional activation_function.threshold, W_skip (D,D)
    W_enc_{i}.safetensors       CLT: W_enc_{i} (F,D) b_enc_{i} b_dec_{i}, optional threshold_{i}
    W_dec_{i}.safetensors       CLT: W_dec_{i} (F, L-i, D); [:, j] writes to layer i+j

Where no activation is named, a threshold tensor means JumpReLU and its absence ReLU. TopK sets
keep their k: in the config, or, where layers differ, as a tensor `k` (CLT: `k_{i}`) in each file.

Layers count up from 0 without gaps, so that a file that is missing is noticed. A set that leaves
layers out says which it covers, `layers: [4, 5, 11]`; the others have no features.

`config.yaml` may name the files instead, one a layer (of those in `layers:`, where it is there), as
paths in the folder or as `hf://org/repo/path?revision=…`. What a named file holds decides how it is
read: `W_enc` as above, `w_enc` as GemmaScope 2, an .npz as GemmaScope.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats import gemma_scope, gemma_scope_2
from circuit_tracer.transcoders.formats.config import FolderConfig, read_config
from circuit_tracer.transcoders.formats.placement import inside
from circuit_tracer.transcoders.formats.tensors import TensorFile, jump_relu

THRESHOLD = "activation_function.threshold"
Fetch = Callable[[str], Path]


def open_folder(folder: Path, name: str | None = None, fetch: Fetch | None = None) -> TranscoderSet:
    """Open a folder. Reads headers only; weights stay on disk until they are used.

    Args:
        fetch: brings a file `hf://…` and says where it is; without it such entries are refused.
    """
    config = read_config(folder, name or "")
    plt = config.model_kind == "transcoder_set"
    if config.transcoders is not None:
        named = [_entry(folder, entry, fetch) for entry in config.transcoders]
        files = dict(zip(config.layers or range(len(named)), named, strict=True))
    else:
        pattern = "layer_{}.safetensors" if plt else "W_enc_{}.safetensors"
        files = _numbered(folder, pattern, config.layers)
    listed = config.transcoders is not None
    n_layers = max(files) + 1
    if not plt and config.layers is not None:
        n_layers = _written(folder, *next(iter(files.items())), listed)

    def source(layer: int) -> LayerWeights:
        if listed:
            return _named(files[layer], layer, n_layers, config)
        if plt:
            return _per_layer(TensorFile(files[layer]), config)
        return _cross_layer(folder, layer, n_layers, config)

    return TranscoderSet(
        kind="plt" if plt else "clt",
        read=config.feature_input_hook,
        write=config.feature_output_hook,
        n_layers=n_layers,
        source=source,
        name=name or str(folder),
        covered=None if config.layers is None else tuple(files),
    )


def _numbered(folder: Path, pattern: str, layers: list[int] | None) -> dict[int, Path]:
    """Files of a pattern: of the layers that the config lists, or else 0, 1, 2 … without gaps."""
    found = sorted(path.name for path in folder.glob(pattern.format("*")))
    if layers is None:
        count = 0
        while pattern.format(count) in found:
            count += 1
        if not count or len(found) != count:
            raise TranscoderError(
                f"{folder} should hold {pattern.format('0')}, {pattern.format('1')} … without "
                f"gaps; found {len(found)}, of which {count} count up from 0. Fetch the folder "
                "again; if layers are left out on purpose, list those that are there in its "
                "config.yaml, as layers: [4, 5, 11]."
            )
        layers = list(range(count))
    wanted = {layer: pattern.format(layer) for layer in layers}
    wrong = sorted(set(wanted.values()) ^ set(found))
    if wrong:
        raise TranscoderError(
            f"{folder}/config.yaml lists layers {', '.join(map(str, layers))}, but {wrong[0]} is "
            f"{'there too' if wrong[0] in found else 'missing'}. Fetch the folder again, or mend "
            "the list."
        )
    return {layer: inside(folder, file) for layer, file in wanted.items()}


def _written(folder: Path, layer: int, path: Path, listed: bool) -> int:
    """Number of layers that a cross-layer set writes to, from the shape of one decoder."""
    file = TensorFile(path if listed else inside(folder, f"W_dec_{layer}.safetensors"))
    shape = file.shape("w_dec" if listed else f"W_dec_{layer}")
    if len(shape) != 3:
        raise TranscoderError(f"the decoders in {file.path} have shape {shape}, not three axes.")
    return shape[1] if listed else layer + shape[1]


def _entry(folder: Path, entry: str, fetch: Fetch | None) -> Path:
    """The file that an entry of `transcoders:` names."""
    if entry.startswith("hf://"):
        if fetch is None:
            raise TranscoderError(
                f"{folder}/config.yaml points at a file on the hub, {entry}, and nothing here may "
                "fetch it. Download it into the folder and name it there."
            )
        return fetch(entry)
    path = inside(folder, entry)
    if not path.is_file():
        raise TranscoderError(f"{folder}/config.yaml names {entry}, which is not there.")
    return path


def _named(path: Path, layer: int, n_layers: int, config: FolderConfig) -> LayerWeights:
    """A layer from a file that the config names, read as what it holds."""
    plt = config.model_kind == "transcoder_set"
    archive = path.suffix == ".npz"
    file = None if archive else TensorFile(path)
    if file is not None and "w_enc" not in file.names and plt:
        return _per_layer(file, config)
    if config.activation not in (None, "jump_relu"):
        raise TranscoderError(f"config.yaml says {config.activation}, but {path} is JumpReLU.")
    if file is not None:
        return gemma_scope_2.read_layer(path, layer, n_layers, "plt" if plt else "clt")
    if not plt:
        raise TranscoderError(f"{path} is a per-layer archive, in a set that is cross-layer.")
    return gemma_scope.read_layer(path)


def _activation(
    file: TensorFile, threshold: str, k: str, n_features: int, config: FolderConfig
) -> Activation:
    if config.activation == "topk" or (config.activation is None and k in file.names):
        kept = file.count(k) if k in file.names else config.k
        if config.k not in (None, kept):
            raise TranscoderError(f"{file.path} keeps {kept} features, its config {config.k}.")
        return Activation("topk", k=kept or 0)
    if threshold in file.names and config.activation != "relu":
        return jump_relu(file, threshold, n_features)
    if config.activation == "jump_relu":
        raise TranscoderError(f"{file.path} should hold {threshold!r}: its config says jump_relu.")
    return Activation("relu")


def _per_layer(file: TensorFile, config: FolderConfig) -> LayerWeights:
    encoder = file.get("W_enc", (-1, -1))
    n_features, width = encoder.shape
    return LayerWeights(
        encoder=encoder,
        encoder_bias=file.get("b_enc", (n_features,)),
        decoders=(file.get("W_dec", (n_features, width)),),
        output_bias=file.get("b_dec", (width,)),
        activation=_activation(file, THRESHOLD, "k", n_features, config),
        skip=file.get("W_skip", (width, width)) if "W_skip" in file.names else None,
    )


def _cross_layer(folder: Path, layer: int, n_layers: int, config: FolderConfig) -> LayerWeights:
    encoders = TensorFile(inside(folder, f"W_enc_{layer}.safetensors"))
    encoder = encoders.get(f"W_enc_{layer}", (-1, -1))
    n_features, width = encoder.shape
    decoders = TensorFile(inside(folder, f"W_dec_{layer}.safetensors"))
    table = decoders.get(f"W_dec_{layer}", (n_features, n_layers - layer, width))
    skip = f"W_skip_{layer}"
    return LayerWeights(
        encoder=encoder,
        encoder_bias=encoders.get(f"b_enc_{layer}", (n_features,)),
        decoders=table.unbind(1),
        output_bias=encoders.get(f"b_dec_{layer}", (width,)),
        activation=_activation(encoders, f"threshold_{layer}", f"k_{layer}", n_features, config),
        skip=encoders.get(skip, (width, width)) if skip in encoders.names else None,
    )
