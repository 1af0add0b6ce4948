"""Tensors of files: found by name, checked for type and shape, with errors that name the file.

A `TensorFile` is a safetensors file, memory-mapped; `gemma_scope.NpzFile` reads NumPy's archives.
Both answer to `Tensors`, which is all that the formats know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor
from circuit_tracer.transcoders.base import Activation

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Tensors(Protocol):
    """A file of named tensors."""

    @property
    def path(self) -> Path | str:
        """Where they are, for messages."""
        ...

    names: frozenset[str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        ...

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, checked to be floating point and of `shape` (-1 matches anything)."""
        ...


class TensorFile:
    """One safetensors file. Tensors it returns are views of the mapped file until written to."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise TranscoderError(
                f"{path} is missing. The folder's config names this set, so the download or copy "
                "is incomplete: fetch the folder again."
            )
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
            self.names = frozenset(self._file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            raise TranscoderError(
                f"{path} is not a readable safetensors file ({error}): it is damaged or cut short. "
                "Fetch it again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header alone."""
        require(self, name)
        return tuple(self._file.get_slice(name).get_shape())

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, checked to be floating point and of `shape` (-1 matches anything)."""
        require(self, name)
        return checked(self._file.get_tensor(name), name, self.path, shape)

    def count(self, name: str) -> int:
        """A tensor that is one whole number above zero."""
        require(self, name)
        tensor = self._file.get_tensor(name)
        if tensor.numel() != 1 or tensor.is_floating_point() or int(tensor) < 1:
            raise TranscoderError(f"{name} in {self.path} should be one whole number above 0.")
        return int(tensor)


def require(file: Tensors, name: str) -> None:
    """Raise TranscoderError, with the names there are, unless the file has this tensor."""
    if name not in file.names:
        raise TranscoderError(
            f"{file.path} has no tensor {name!r}; it holds {', '.join(sorted(file.names))}."
        )


def checked(
    tensor: Tensor, name: str, path: Path | str, shape: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor itself. Raises TranscoderError unless it is of a float type and of `shape`."""
    if tensor.dtype not in FLOATS:
        raise TranscoderError(f"{name} in {path} is {tensor.dtype}; expected a float tensor.")
    if shape is not None and not _fits(tuple(tensor.shape), shape):
        raise TranscoderError(
            f"{name} in {path} has shape {tuple(tensor.shape)}; expected "
            f"{tuple('any' if n < 0 else n for n in shape)}."
        )
    return tensor


def jump_relu(file: Tensors, name: str, n_features: int) -> Activation:
    """JumpReLU with the thresholds of a tensor: one for all features, or one each.

    A threshold that is NaN would silence its feature without a word, so it is refused here.
    """
    scalar = file.shape(name) in ((), (1,)) if name in file.names else False
    threshold = file.get(name, None if scalar else (n_features,))
    if threshold.isnan().any():
        raise TranscoderError(
            f"{name} in {file.path} holds NaN: the features it belongs to could never fire. "
            "Fetch the file again."
        )
    return Activation("jump_relu", threshold)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w < 0 or s == w for s, w in zip(shape, wanted, strict=True)
    )
