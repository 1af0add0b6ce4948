"""Public transcoder sets that are known to fit a public model, and one word for each pair.

A row says what its authors say: which model, which repository, per-layer (PLT) or cross-layer
(CLT), and sizes where they are public. Nothing here is downloaded before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from circuit_tracer.errors import InputError


@dataclass(frozen=True)
class Preset:
    """A model with transcoders trained on it.

    Attributes:
        name: the word for it.
        model, transcoders: hub ids.
        kind: "plt" or "clt".
        parameters: of the model, in billions.
        layers, d_model: of the model.
        features: of the whole set, about; None where its authors do not say.
    """

    name: str
    model: str
    transcoders: str
    kind: Literal["plt", "clt"]
    parameters: float
    layers: int
    d_model: int
    features: int | None = None


GEMMA_2 = ("google/gemma-2-2b", 2.6, 26, 2304)
LLAMA_3_2 = ("meta-llama/Llama-3.2-1B", 1.2, 16, 2048)


def _of(
    shape: tuple[str, float, int, int],
    name: str,
    transcoders: str,
    kind: Literal["plt", "clt"] = "plt",
    features: int | None = None,
) -> Preset:
    model, parameters, layers, d_model = shape
    return Preset(name, model, transcoders, kind, parameters, layers, d_model, features)


def _gemma_3(size: str, parameters: float, layers: int, d_model: int) -> tuple[Preset, Preset]:
    """Gemma Scope 2 of a pretrained and of an instruction-tuned Gemma 3: 16k features a layer."""
    made = []
    for tuning in ("pt", "it"):
        shape = (f"google/gemma-3-{size}-{tuning}", parameters, layers, d_model)
        folder = f"mwhanna/gemma-scope-2-{size}-{tuning}/transcoder_all/width_16k_l0_small_affine"
        name = f"gemma3-{size}" + ("-it" if tuning == "it" else "")
        made.append(_of(shape, name, folder, "plt", layers * 2**14))
    return made[0], made[1]


PRESETS: tuple[Preset, ...] = (
    _of(GEMMA_2, "gemma", "mwhanna/gemma-scope-transcoders", "plt", 26 * 2**14),
    _of(GEMMA_2, "gemma-clt", "mntss/clt-gemma-2-2b-426k", "clt", 426_000),
    _of(GEMMA_2, "gemma-clt-large", "mntss/clt-gemma-2-2b-2.5M", "clt", 2_500_000),
    _of(LLAMA_3_2, "llama", "mntss/transcoder-Llama-3.2-1B"),
    _of(LLAMA_3_2, "llama-clt", "mntss/clt-llama-3.2-1b-524k", "clt", 524_000),
    _of(
        ("meta-llama/Llama-3.1-8B-Instruct", 8.0, 32, 4096),
        "llama-8b-it",
        "facebook/crv-8b-instruct-transcoders",
    ),
    _of(("Qwen/Qwen3-0.6B", 0.6, 28, 1024), "qwen3-0.6b", "mwhanna/qwen3-0.6b-transcoders-lowl0"),
    _of(("Qwen/Qwen3-1.7B", 1.7, 28, 2048), "qwen3-1.7b", "mwhanna/qwen3-1.7b-transcoders-lowl0"),
    _of(("Qwen/Qwen3-4B", 4.0, 36, 2560), "qwen3-4b", "mwhanna/qwen3-4b-transcoders"),
    _of(("Qwen/Qwen3-8B", 8.2, 36, 4096), "qwen3-8b", "mwhanna/qwen3-8b-transcoders"),
    _of(("Qwen/Qwen3-14B", 14.8, 40, 5120), "qwen3-14b", "mwhanna/qwen3-14b-transcoders-lowl0"),
    *_gemma_3("270m", 0.27, 18, 640),
    *_gemma_3("1b", 1.0, 26, 1152),
    *_gemma_3("4b", 4.3, 34, 2560),
    *_gemma_3("12b", 12.2, 48, 3840),
    *_gemma_3("27b", 27.4, 62, 5376),
    _of(("openai/gpt-oss-20b", 20.9, 24, 2880), "gpt-oss", "mntss/clt-131k", "clt"),
)


def preset(name: str) -> Preset | None:
    """The preset of a word, if it is one.

    Raises:
        InputError: there is a folder of that name here as well; `./name` is the folder.
    """
    found = next((entry for entry in PRESETS if entry.name == name), None)
    if found is not None and Path(name).is_dir():
        raise InputError(
            f"{name} is a preset ({found.model}) and a folder here: write ./{name} for the folder, "
            f"or {found.model} for the model"
        )
    return found


def transcoders_of(model: str) -> str | None:
    """The set of the first preset with this model (a hub id, with or without @revision)."""
    name = model.partition("@")[0].lower()
    return next((entry.transcoders for entry in PRESETS if entry.model.lower() == name), None)
