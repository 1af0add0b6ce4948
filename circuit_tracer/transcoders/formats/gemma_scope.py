"""GemmaScope: NumPy archives, one a layer, of JumpReLU transcoders for Gemma 2.

    layer_{i}/width_*/average_l0_*/params.npz     or     layer_{i}.npz
        W_enc (D,F)  W_dec (F,D)  b_enc (F)  b_dec (D)  threshold (F)

They read the pre-MLP norm before its weight and predict the MLP's output after the post-MLP norm.
The archive says nothing of that, nor whether it is a transcoder or an autoencoder of another site
(those have the same tensors), so only names that say so are refused.

Headers are read before arrays: objects, which NumPy would unpickle, and sizes that the file does
not have are refused by name. Arrays are read whole, a layer at a time; `circuit-tracer convert`
makes a folder of them that is memory-mapped.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.placement import by_layer, one_each
from circuit_tracer.transcoders.formats.tensors import checked, jump_relu, require

LAYER = r"(?:^|/)layer_(\d+)(?:/|\.npz$)"
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
)
DEFLATED = 1100  # no deflated file is smaller than its content by more
AUTOENCODERS = re.compile(r"gemma-scope-\w+-\w+-(?:res|mlp|att)\b")


class NpzFile:
    """One archive of NumPy arrays."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if not path.is_file():
                raise FileNotFoundError("there is no such file")
            with zipfile.ZipFile(path) as archive:
                self._headers = {
                    entry.filename.removesuffix(".npy"): _header(archive, entry, path)
                    for entry in archive.infolist()
                }
        except UNREADABLE as error:
            raise TranscoderError(
                f"{path} is not a readable .npz archive ({error}): it is missing, damaged or cut "
                "short. Fetch it again."
            ) from error
        self.names = frozenset(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, from the header alone."""
        require(self, name)
        return self._headers[name]

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The array, checked to be floating point and of `shape` (-1 matches anything)."""
        require(self, name)
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                tensor = torch.from_numpy(np.ascontiguousarray(archive[name]))
        except (*UNREADABLE, MemoryError) as error:
            raise TranscoderError(f"{name} in {self.path} cannot be read: {error}") from error
        return checked(tensor.reshape(self._headers[name]), name, self.path, shape)


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> tuple[int, ...]:
    """Shape of one array. Raises TranscoderError for objects and for sizes that are not there."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{entry.filename} has version {version}")
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise TranscoderError(
            f"{entry.filename} in {path} holds pickled Python objects, which can run code when "
            "they are read; only arrays of numbers are. Save it again with np.savez of arrays."
        )
    size = start + math.prod(shape) * dtype.itemsize
    if size != entry.file_size or size > DEFLATED * path.stat().st_size:
        raise ValueError(f"{entry.filename} says shape {shape}, which is not its size")
    return tuple(shape)


def read_layer(path: Path) -> LayerWeights:
    """One archive as a layer; the encoder is a transposed view."""
    file = NpzFile(path)
    encoder_bias, output_bias = file.get("b_enc", (-1,)), file.get("b_dec", (-1,))
    n_features, width = len(encoder_bias), len(output_bias)
    return LayerWeights(
        encoder=file.get("W_enc", (width, n_features)).T,
        encoder_bias=encoder_bias,
        decoders=(file.get("W_dec", (n_features, width)),),
        output_bias=output_bias,
        activation=jump_relu(file, "threshold", n_features),
    )


def is_set(folder: Path) -> bool:
    """Whether the folder holds archives named by layer."""
    return any(re.search(LAYER, p.relative_to(folder).as_posix()) for p in folder.rglob("*.npz"))


def open_set(folder: Path, name: str) -> TranscoderSet:
    """Open a folder of archives. Raises TranscoderError if a layer has several."""
    if AUTOENCODERS.search(name):
        raise TranscoderError(
            f"{name} holds sparse autoencoders of one site, not transcoders from one to another. "
            "Pass the transcoders of that model (…-transcoders)."
        )
    found = by_layer(folder, folder.rglob("*.npz"), LAYER)
    files = one_each(folder, found, "layer_0/…/params.npz or layer_0.npz")
    return TranscoderSet(
        kind="plt",
        read="ln2.hook_normalized",
        write="hook_mlp_out",
        n_layers=max(files) + 1,
        covered=tuple(files),
        source=lambda layer: read_layer(files[layer]),
        name=name,
    )
