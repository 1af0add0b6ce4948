"""Tensors of safetensors files: memory-mapped, checked, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
        self._require(name)
        return tuple(self._file.get_slice(name).get_shape())

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, checked to be floating point and of `shape` (-1 matches anything)."""
        self._require(name)
        tensor = self._file.get_tensor(name)
        if tensor.dtype not in FLOATS:
            raise TranscoderError(
                f"{name} in {self.path} is {tensor.dtype}; expected a float tensor."
            )
        if shape is not None and not _fits(tuple(tensor.shape), shape):
            raise TranscoderError(
                f"{name} in {self.path} has shape {tuple(tensor.shape)}; expected "
                f"{tuple('any' if n < 0 else n for n in shape)}."
            )
        return tensor

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise TranscoderError(
                f"{self.path} has no tensor {name!r}; it holds {', '.join(sorted(self.names))}."
            )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        w < 0 or s == w for s, w in zip(shape, wanted, strict=True)
    )
