"""Other programs that draw curves: TensorBoard and Weights & Biases, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from circuit_tracer.errors import InputError
from circuit_tracer.train.moment import Moment

Tracker = Literal["tensorboard", "wandb"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)


def tracker(name: str, folder: Path, settings: dict[str, Any]) -> Callable[[Moment], None]:
    """A listener that sends every moment on.

    Args:
        name: "tensorboard" (files under `folder`/tensorboard) or "wandb" (its own configuration
            says where; WANDB_MODE=offline keeps it here).

    Raises:
        InputError: another name, or the package is not installed.
    """
    if name == "tensorboard":
        writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter(
            str(folder / "tensorboard")
        )

        def write(moment: Moment) -> None:
            for key, value in moment.scalars().items():
                writer.add_scalar(key, value, moment.step)
            writer.flush()

        return write
    if name == "wandb":
        run = _package("wandb", "wandb").init(dir=str(folder), config=settings)
        return lambda moment: run.log(moment.scalars(), step=moment.step)
    raise InputError(f"a tracker must be one of {', '.join(TRACKERS)}, not {name!r}")


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"tracking with {package} needs it installed: pip install {package}"
        ) from error
