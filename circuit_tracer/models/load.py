"""Finding and opening models: the bundled one, folders, and Hugging Face hub ids."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import InputError, ModelError, TranscoderError
from circuit_tracer.models.adapter import Adapter

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device: str) -> torch.device:
    """A torch device by name; "auto" is cuda, then cpu.

    Raises:
        InputError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); "
            "try --device auto or cpu"
        ) from error
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    """A torch dtype by name; "auto" is float32 on a CPU and the checkpoint's own on a GPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise InputError(f"dtype must be auto or one of {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[dtype]


def split_revision(reference: str) -> tuple[str, str | None]:
    """`org/repo@revision` as (org/repo, revision)."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def local_folder(reference: str) -> Path | None:
    """The folder a reference names, if it is one; None for a hub id.

    Raises:
        InputError: it looks like a path, but there is nothing there.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{reference} is a file; give the folder that holds it")
    if path.is_absolute() or reference.startswith((".", "~")) or reference.count("/") != 1:
        raise InputError(
            f"there is no folder {reference}; give a folder, or a hub id such as google/gemma-2-2b"
        )
    return None


def fetch(reference: str, patterns: list[str] | None = None) -> Path:
    """The folder of a reference; hub ids are downloaded into the hub's own cache.

    Raises:
        InputError: no such folder. ModelError: no network, no such repository or revision.
    """
    folder = local_folder(reference)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    name, revision = split_revision(reference)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(_why_not(name, revision, error)) from error


def _why_not(name: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"{name} asks you to accept its licence first: do so on its hub page and log in"
    if kind == "RepositoryNotFoundError":
        return f"the hub has no repository {name}, or you may not see it: check the name, or log in"
    if kind == "RevisionNotFoundError":
        return f"{name} has no revision {revision!r}"
    return (
        f"{name} is neither a folder nor in the local cache, and it cannot be downloaded "
        f"({kind}). Check the network, or pass a folder."
    )


@contextmanager
def _quiet() -> Any:
    """Without transformers' progress bars and advice, which belong to another program."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def open_model(reference: str, device: torch.device, dtype: torch.dtype | str) -> Any:
    """(Adapter, tokenizer) of a folder or hub id.

    Raises:
        ModelError: no config, unknown architecture, damaged weights.
    """
    folder = fetch(reference, ["*.json", "*.safetensors", "*.model", "*.txt"])
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder. It should "
            "hold config.json, tokenizer.json and *.safetensors, as save_pretrained writes them."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not valid JSON: {error}") from error
    import transformers

    with _quiet():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager", use_safetensors=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{reference} cannot be loaded: {reason}") from error
    model = model.to(device).eval().requires_grad_(False)
    exact = torch.float64 if model.dtype == torch.float64 else torch.float32
    return Adapter(model, reference, exact), tokenizer


def open_transcoders(reference: str) -> Any:
    """The transcoder set of a folder or hub id."""
    from circuit_tracer.transcoders.formats.folder import open_folder

    try:
        folder = fetch(reference, ["*.yaml", "*.safetensors"])
    except ModelError as error:
        raise TranscoderError(str(error)) from error
    return open_folder(folder, reference)
