"""Finding and opening models: the bundled one, folders, and Hugging Face hub ids."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from circuit_tracer.errors import InputError, ModelError, TranscoderError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.transcoders.base import TranscoderSet

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


OTHERS = ["*.json", "*sae.safetensors", "*sae_weights.safetensors"]
OTHERS += ["layer_" + "?" * digits + ".npz" for digits in (1, 2, 3)]
"""Downloaded of a hub repository without a config.yaml: files of which there is one a layer. Not
those of GemmaScope, which has hundreds of gigabytes to choose from."""


def open_transcoders(reference: str) -> TranscoderSet:
    """The transcoder set of a folder, a hub id, or a folder in one: `org/repo/sub@revision`.

    Raises:
        InputError: no such folder. TranscoderError: no network, no known format, damaged files.
    """
    from circuit_tracer.transcoders.formats.opening import open_set

    try:
        return open_set(_fetch_set(reference), reference, fetch_file)
    except ModelError as error:
        raise TranscoderError(str(error)) from error


def _fetch_set(reference: str) -> Path:
    """The folder of a set."""
    name, revision = split_revision(reference)
    org, _, rest = name.partition("/")
    repository, _, inner = rest.partition("/")
    if not inner or Path(reference).expanduser().exists() or org in ("", ".", "..", "~"):
        return _fetch_whole(reference)
    inner = inner.strip("/")
    if ".." in inner.split("/"):
        raise InputError(f"{reference} should be a folder in a repository; take '..' out of it")
    whole = f"{org}/{repository}" + (f"@{revision}" if revision else "")
    folder = fetch(whole, [f"{inner}/*"]) / inner
    if not folder.is_dir():
        raise TranscoderError(f"{whole} has no folder {inner}: check the name")
    return folder


def _fetch_whole(reference: str) -> Path:
    """A folder or repository. Where its config names files, only those are downloaded."""
    from circuit_tracer.transcoders.formats.config import NAME, read_config

    folder = fetch(reference, ["*.yaml"])
    if not (folder / NAME).is_file():
        return fetch(reference, OTHERS)
    named = read_config(folder, reference).transcoders
    if named is None:
        return fetch(reference, ["*.yaml", "*.safetensors"])
    beside = [entry for entry in named if not entry.startswith("hf://")]
    return fetch(reference, ["*.yaml", *beside]) if beside else folder


def fetch_file(uri: str) -> Path:
    """A file of a hub repository, `hf://org/repo/path?revision=…`, in the hub's own cache.

    Raises:
        TranscoderError: not such a name; no network, no such repository, revision or file.
    """
    from huggingface_hub import hf_hub_download

    wanted = f"{uri!r} should read hf://org/repo/path/to/file?revision=…"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise TranscoderError(wanted) from error
    repository, _, path = parts.path.lstrip("/").partition("/")
    if parts.scheme != "hf" or not parts.netloc or not path or ".." in path.split("/"):
        raise TranscoderError(wanted)
    name = f"{parts.netloc}/{repository}"
    revision = parse_qs(parts.query).get("revision", [None])[0]
    try:
        return Path(hf_hub_download(name, path, revision=revision))
    except Exception as error:
        if type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
            raise TranscoderError(f"{name} has no file {path}") from error
        raise TranscoderError(_why_not(name, revision, error)) from error
