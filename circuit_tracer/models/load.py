"""Finding and opening models: the bundled one, folders, and Hugging Face hub ids."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch

from circuit_tracer.errors import CircuitTracerError, InputError, ModelError, TranscoderError
from circuit_tracer.models.inference import adapt
from circuit_tracer.models.placement import BALANCED, Offload, check_choice, open_weights
from circuit_tracer.transcoders.base import TranscoderSet

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def resolve_device(device: str) -> torch.device:
    """A torch device by name; "auto" is cuda, then cpu, and so is "balanced" (all of them).

    Raises:
        InputError: unknown, or not on this machine.
    """
    if device in ("auto", BALANCED):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        known = "Expected one of" not in str(error)  # torch then lists devices nobody has
        why = str(error).splitlines()[0] if known else "torch knows no such device"
        raise InputError(
            f"device {str(device)!r} cannot be used here ({why}); try --device auto or cpu"
        ) from error
    return found


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    """A torch dtype by name; "auto" is float32 on a CPU and the checkpoint's own on a GPU."""
    dtype = str(dtype).removeprefix("torch.")
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise InputError(f"dtype must be auto or one of {', '.join(DTYPES)}; got {dtype!r}")
    if dtype == "float64" and device.type == "mps":
        raise InputError("mps has no float64: use dtype='float32', or device='cpu'")
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


def open_model(
    reference: str,
    device: torch.device,
    dtype: torch.dtype | str,
    split: bool = False,
    offload: Offload = None,
) -> Any:
    """(Adapter, tokenizer) of a folder or hub id. Nothing in it is executed.

    Args:
        split, offload: as in `placement.open_weights`.

    Raises:
        InputError: a placement that is not possible here.
        ModelError: no config, an architecture that cannot be traced, damaged weights.
    """
    check_choice(BALANCED if split else str(device), offload)
    folder = fetch(reference, ["*.json", "*.safetensors", "*.model", "*.txt"])
    _check_files(folder)
    import transformers

    with _quiet():
        try:
            model = open_weights(folder, device, dtype, split, offload)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except CircuitTracerError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{reference} cannot be loaded: {reason}") from error
        exact = torch.float64 if model.dtype == torch.float64 else torch.float32
        return adapt(model, reference, exact), tokenizer


def _check_files(folder: Path) -> None:
    """Raise ModelError unless a folder holds a model that can be read without running any of it."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a Hugging Face model folder. It should "
            "hold config.json, tokenizer.json and *.safetensors, as save_pretrained writes them."
        )
    for path in folder.iterdir():
        if path.is_symlink() and not _stays_inside(path, folder):
            raise ModelError(
                f"{path} is a link to {path.resolve()}, outside its folder; put the file itself "
                "there"
            )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{config} is not valid JSON: {error}") from error
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for end in PICKLES for p in folder.glob(f"*{end}"))
        if pickles:
            raise ModelError(
                f"{folder} keeps its weights in {pickles[0]}, a pickle, which can run any code "
                "when opened, and is refused. Take a revision with *.safetensors, or convert it "
                "where you trust it: save_pretrained(…, safe_serialization=True)."
            )
        raise ModelError(f"{folder} has no *.safetensors: its weights are missing")


PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def _stays_inside(link: Path, folder: Path) -> bool:
    """Whether a link leads to its own folder, or to the blobs of the hub's cache it stands in."""
    blobs = folder.resolve().parent.parent / "blobs"
    return any(link.resolve().is_relative_to(place) for place in (folder.resolve(), blobs))


CHOICES_SHOWN = 12
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

    if reference.partition(":")[0] == "neurons":
        raise InputError(
            "neurons are the model's own, not files: give them to ct.load(…, transcoders='neurons')"
            " or --transcoders neurons; a folder of that name is written ./neurons"
        )
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
        folder = fetch(reference, OTHERS)
        if local_folder(reference) is None:
            _check_choice_was_made(reference, folder)
        return folder
    named = read_config(folder, reference).transcoders
    if named is None:
        return fetch(reference, ["*.yaml", "*.safetensors"])
    beside = [entry for entry in named if not entry.startswith("hf://")]
    return fetch(reference, ["*.yaml", *beside]) if beside else folder


def _check_choice_was_made(reference: str, folder: Path) -> None:
    """Raise TranscoderError, with what there is, where a repository's files have to be chosen."""
    if any(next(folder.rglob(end), None) for end in ("*.npz", "*.safetensors")):
        return
    from huggingface_hub import list_repo_files

    name, revision = split_revision(reference)
    try:
        names = sorted(list_repo_files(name, revision=revision))
    except Exception as error:
        raise TranscoderError(_why_not(name, revision, error)) from error
    found = [path for path in names if path.endswith(("params.npz", "params.safetensors"))]
    if not found:
        return
    layers = [path for path in found if "layer_0" in path] or found
    shown = "\n  ".join(layers[:CHOICES_SHOWN])
    more = f"\n  … {len(layers) - CHOICES_SHOWN} more" if len(layers) > CHOICES_SHOWN else ""
    at = f"?revision={revision}" if revision else ""
    raise TranscoderError(
        f"{name} has several transcoders for a layer, {len(found)} files in all; of layer 0:\n  "
        f"{shown}{more}\nName one a layer in a folder with a config.yaml (docs/transcoders.md):\n"
        "  model_kind: transcoder_set\n"
        "  feature_input_hook: ln2.hook_normalized   # or where these were trained to read\n"
        "  feature_output_hook: hook_mlp_out\n"
        f"  transcoders:\n  - hf://{name}/{layers[0]}{at}\n  - …"
    )


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
