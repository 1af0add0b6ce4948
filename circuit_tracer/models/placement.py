"""Where a model's weights live: on one device, over several, or offloaded by layer.

Offloaded layers stay in CPU memory or on disk, and each is fetched while it runs, or while its
attention is folded, and dropped again: the residual stream, embedding and unembedding never leave
the device. Both this and several devices are accelerate's work (the extra `large`).
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any, Literal

import torch

from circuit_tracer.errors import InputError, ModelError
from circuit_tracer.models.inference import block_list

Offload = Literal["cpu", "disk"] | None
OFFLOADS = ("cpu", "disk")
BALANCED = "balanced"


def open_weights(
    folder: Path, device: torch.device, dtype: torch.dtype | str, split: bool, offload: Offload
) -> Any:
    """The model of a folder, in eval mode, its weights where they should be.

    Args:
        device: where it runs; with `split`, where results are gathered is accelerate's choice.
        split: spread the layers over all devices there are.
        offload: keep the layers in CPU memory ("cpu") or on disk ("disk").

    Raises:
        InputError: accelerate is not installed.
        ModelError: weights are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    quantised = getattr(config, "quantization_config", None) is not None
    settings: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": "eager",
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if split or offload or (quantised and importlib.util.find_spec("accelerate")):
        need_accelerate()
        settings["device_map"] = {"": str(device)} if quantised else None
    if split:
        settings["device_map"] = BALANCED
    if offload == "disk":
        settings["device_map"] = _on_disk(config, device)
        settings["offload_folder"] = scratch = tempfile.mkdtemp(prefix="circuit_tracer_")
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **settings
    )
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, among them "
            f"{missing[0]}: transformers would make them up at random. Fetch the model again"
        )
    model.eval().requires_grad_(False)
    if offload == "disk":
        weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    elif offload == "cpu":
        _keep_in_memory(model, device)
    elif settings.get("device_map") is None:
        model.to(device)
    return model


def check_choice(device: str, offload: str | None) -> None:
    """Raise InputError unless `device` and `offload` go together, and what they need is there."""
    if offload is not None and offload not in OFFLOADS:
        raise InputError(f"offload must be one of {', '.join(OFFLOADS)}, or left out: {offload!r}")
    if device == BALANCED and offload is not None:
        raise InputError("device='balanced' spreads the layers over devices: leave offload out")
    if device == BALANCED and torch.cuda.device_count() < 2:
        raise InputError(
            f"device='balanced' needs several CUDA devices; this machine has "
            f"{torch.cuda.device_count()}. Use device='auto', with offload='cpu' (--offload cpu) "
            "where the model is too large for it"
        )
    if device == BALANCED or offload is not None:
        need_accelerate()


def need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "offloading weights, and spreading them over devices, needs accelerate: "
            "pip install 'trace-circuits[large]'"
        )


def _on_disk(config: Any, device: torch.device) -> dict[str, str]:
    """A device map with the blocks on disk and everything else on the device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    path, blocks = block_list(skeleton)
    places = {f"{path}.{number}": "disk" for number in range(len(blocks))}

    def rest(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            here = f"{prefix}{name}"
            if path.startswith(f"{here}."):
                rest(child, f"{here}.")
            elif here != path:
                places[here] = str(device)

    rest(skeleton, "")
    return places


def _keep_in_memory(model: Any, device: torch.device) -> None:
    """Leave the blocks in CPU memory, to be fetched one module at a time."""
    from accelerate import cpu_offload

    _, blocks = block_list(model)
    inner = {id(module) for module in blocks.modules()}
    for module in model.modules():
        if id(module) in inner:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for block in blocks:
        cpu_offload(block, execution_device=device)
