"""The doctor: what this machine can do, and how to mend what is missing.

Each check is a small function that returns a `Finding` and never raises; `examine` runs them all.
Nothing is downloaded, nothing is changed.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuit_tracer import bundled

if TYPE_CHECKING:
    from circuit_tracer.models.placement import Offload

LEAST_FREE_MEMORY = 2**30  # bytes: torch, transformers and a small model
LEAST_FREE_DISK = 50 * 2**20  # bytes: pages and graphs
NEEDED = (
    "safetensors",
    "huggingface_hub",
    "numpy",
    "jaxtyping",
    "networkx",
    "plotly",
    "pydantic",
    "pyyaml",
    "click",
    "rich",
)
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome",
    "firefox",
    "msedge",
    "microsoft-edge",
    "safari",
    "xdg-open",
    "open",
)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be.
        found: what is there, in words.
        remedy: what to do about it; empty when all is well.
        needed: whether tracing the bundled model is impossible without it.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Every check, in the order a person would ask."""
    return [finding for check in CHECKS for finding in check()]


def examine_model(reference: str, offload: Offload = None) -> list[Finding]:
    """Whether a model is what tracing takes it to be: its family, and each claim made of it.

    Args:
        reference: a hub id, folder or preset, as `load` takes it.
        offload: "cpu" or "disk" keep its layers there, in float32, in which claims are measured.
    """
    from circuit_tracer.errors import CircuitTracerError
    from circuit_tracer.models.check import TOLERANCE, measure
    from circuit_tracer.models.load import open_model, resolve_device, resolve_dtype
    from circuit_tracer.models.presets import preset

    place = resolve_device("auto")
    try:
        known = preset(reference)
        name = reference if known is None else known.model
        dtype = resolve_dtype("auto" if offload is None else "float32", place)
        adapter, _ = open_model(name, place, dtype, offload=offload)
        claims = measure(adapter)
    except CircuitTracerError as error:
        return [Finding("model", False, f"{reference} cannot be traced", str(error))]
    remedy = f"at most {TOLERANCE:g} is expected: its graphs would be wrong; see docs/models.md"
    return [
        Finding("family", True, adapter.family.name),
        *(
            Finding(
                "claim",
                claim.ok,
                f"{claim.name}: off by {claim.error:.1e} at {claim.where}",
                "" if claim.ok else remedy,
            )
            for claim in claims
        ),
    ]


def python() -> list[Finding]:
    ok = sys.version_info >= (3, 10)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", ok, found, "" if ok else "install Python 3.10 or newer")]


def torch() -> list[Finding]:
    """torch itself, and the device that `--device auto` would take."""
    library, found = imported("torch")
    if library is None:
        return [Finding("torch", False, found, "pip install 'torch>=2.6'")]
    ok = release(library.__version__) >= (2, 6)
    remedy = "" if ok else "pip install --upgrade 'torch>=2.6'"
    return [Finding("torch", ok, library.__version__, remedy), device(library)]


def device(library: Any) -> Finding:
    """The best device torch can use, with its size."""
    cuda, mps = library.cuda, library.backends.mps
    count = library.get_num_threads()
    threads = f"{count} thread{'' if count == 1 else 's'}"
    try:
        if cuda.is_available():
            card = cuda.get_device_properties(0)
            found = f"cuda: {card.name}, {size(card.total_memory)}; cpu: {threads}"
        elif mps.is_available():
            found = f"mps; cpu: {threads}"
        else:
            found = f"cpu: {threads}"
    except Exception as error:  # a driver that does not fit its torch
        remedy = "update the driver, or install the torch build that fits it, or use --device cpu"
        return Finding("device", False, f"cpu: {threads}; {one_line(error)}", remedy, needed=False)
    return Finding("device", True, found)


def transformers() -> list[Finding]:
    remedy = "pip install 'transformers>=4.56,<6'"
    library, found = imported("transformers")
    if library is None:
        return [Finding("transformers", False, found, remedy)]
    ok = (4, 56) <= release(library.__version__) < (6,)
    return [Finding("transformers", ok, library.__version__, "" if ok else remedy)]


def libraries() -> list[Finding]:
    """The other packages that must be there, by their installed versions."""
    findings, missing = [], []
    for name in NEEDED:
        try:
            findings.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = "pip install " + " ".join(missing)
        return [Finding("libraries", False, "missing: " + ", ".join(missing), remedy)]
    return [Finding("libraries", True, ", ".join(findings))]


def triton() -> list[Finding]:
    """Triton, which only `--kernels triton` needs."""
    library, found = imported("triton")
    if library is None:
        remedy = "pip install 'trace-circuits[gpu]' (Linux with a CUDA device; optional)"
        return [Finding("triton", False, found, remedy, needed=False)]
    if os.environ.get("TRITON_INTERPRET") == "1":
        return [Finding("triton", True, f"{library.__version__}, interpreted on the CPU (slow)")]
    return [Finding("triton", True, f"{library.__version__}, used where torch has a CUDA device")]


def browser() -> list[Finding]:
    """Something that `--open` could open a page with."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and platform.system() not in ("Windows", "Darwin"):
        remedy = "pages are ordinary files: copy one to where a browser is (optional)"
        return [Finding("browser", False, "none found", remedy, needed=False)]
    return [Finding("browser", True, found or "the system's")]


def bundled_model() -> list[Finding]:
    """The bundled model and its transcoders: there, and each weight file whole."""
    remedy = "install trace-circuits again, or retrain from a clone: make bundled"
    findings = []
    for name, folder in (
        ("bundled model", bundled.model_dir()),
        ("bundled plt", bundled.transcoder_dir("plt")),
        ("bundled clt", bundled.transcoder_dir("clt")),
    ):
        files = sorted(folder.glob("*.safetensors"))
        damaged = [fault for path in files if (fault := damage(path))]
        if not files or damaged:
            found = "; ".join(damaged) or "no weights found"
            findings.append(Finding(name, False, found, remedy, needed=name != "bundled clt"))
        else:
            total = sum(path.stat().st_size for path in files)
            findings.append(Finding(name, True, f"{len(files)} files, {size(total)}"))
    return findings


def damage(path: Path) -> str:
    """What is wrong with a safetensors file; "" if its header accounts for every byte."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 10**8)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max(entry["data_offsets"][1] for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        return f"{path.name} cannot be read: {one_line(error)}"
    there = path.stat().st_size
    return "" if there == end else f"{path.name} has {there:,} bytes of {end:,}"


def memory() -> list[Finding]:
    free = free_memory()
    if free is None:
        return [Finding("memory", True, "not known on this system", needed=False)]
    ok = free >= LEAST_FREE_MEMORY
    remedy = "" if ok else f"free some memory: at least {size(LEAST_FREE_MEMORY)} is wanted"
    return [Finding("memory", ok, f"{size(free)} free", remedy, needed=False)]


def free_memory() -> int | None:
    """Bytes that could be allocated now, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = dict(line.split(":", 1) for line in lines)
        return int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def disk() -> list[Finding]:
    """Room for pages in the current folder, and whether it can be written."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        return [Finding("disk", False, f"{here} is read-only", "name another place with -o", False)]
    ok = free >= LEAST_FREE_DISK
    remedy = "" if ok else "make room, or name another place with -o"
    return [Finding("disk", ok, f"{size(free)} free here", remedy, needed=False)]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    python,
    torch,
    transformers,
    libraries,
    triton,
    browser,
    bundled_model,
    memory,
    disk,
)


def imported(name: str) -> tuple[Any, str]:
    """The module, or None and why it could not be imported."""
    try:
        return importlib.import_module(name), ""
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == name else one_line(error)
    except Exception as error:  # a broken installation may raise anything
        return None, f"does not import: {one_line(error)}"


def release(version: str) -> tuple[int, ...]:
    """(2, 13) of "2.13.0+cpu"."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
