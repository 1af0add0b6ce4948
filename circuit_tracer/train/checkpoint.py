"""Checkpoints: a training's whole state in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from circuit_tracer.errors import InputError
from circuit_tracer.files import replacing
from circuit_tracer.train.loop import Trainer
from circuit_tracer.train.moment import restored

NAME = "checkpoint.safetensors"


def save(trainer: Trainer, folder: Path, of: dict[str, Any]) -> None:
    """Write a checkpoint into a folder, in the place of the one before. All processes call this.

    Args:
        of: what the training is of, as JSON values; `load` wants the same.
    """
    moments = [moment.plain() for moment in trainer.moments]
    metadata = {"of": json.dumps(of, sort_keys=True), "moments": json.dumps(moments)}
    state = trainer.state()
    if not state:  # the first process has it
        return
    with replacing(folder / NAME) as path:
        save_file(state, path, metadata=metadata)


def load(trainer: Trainer, folder: Path, of: dict[str, Any]) -> bool:
    """Go on from the checkpoint of a folder; False where there is none.

    Raises:
        InputError: it is damaged, or belongs to another training.
    """
    path = folder / NAME
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = json.loads(metadata["of"])
            moments = [restored(values) for values in json.loads(metadata["moments"])]
            names = list(file.keys())  # it has no other way to say them
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete {folder} to start from the beginning"
        ) from error
    wanted = json.loads(json.dumps(of))
    unlike = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if unlike:
        name = unlike[0]
        raise InputError(
            f"{folder} holds an unfinished training with another {name}: {found.get(name)!r} "
            f"there, {wanted.get(name)!r} here. Ask for the same to go on with it, or delete the "
            "folder to start from the beginning"
        )
    trainer.restore(state)
    trainer.moments = moments
    return True
