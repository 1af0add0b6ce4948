"""Moments: what is known of a training at one step, and what is worrying about it.

Figures are of the training batches since the last moment, in scaled units: an error of 1 is that
of always giving the mean. The agreement check at the end measures the folded set on other text.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEAD, USELESS, EXPLODED = 0.5, 0.95, 30.0
SETTLED = 0.25  # share of the steps after which a layer should have learned something


@dataclass(frozen=True)
class Moment:
    """One step of a training.

    Attributes:
        step, steps: done, and in all.
        loss: everything that was minimised, a layer.
        rate: learning rate.
        norm: of the gradient, before clipping.
        nmse, l0, dead: by layer: normalised error, active features a token, share of features
            that have not fired for `dead_after` steps.
        penalty: by layer, λ; empty where nothing is penalised.
        warnings: what is worrying, new at this step.
        top1, kl: of the replacement model on held-out text, as in `Agreement`; at checkpoints.
    """

    step: int
    steps: int
    loss: float
    rate: float
    norm: float
    nmse: tuple[float, ...]
    l0: tuple[float, ...]
    dead: tuple[float, ...]
    penalty: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    top1: float | None = None
    kl: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    def scalars(self) -> dict[str, float]:
        """By name, as trackers want them."""
        found = {"loss": self.loss, "rate": self.rate, "gradient_norm": self.norm}
        for name in ("nmse", "l0", "dead", "penalty"):
            values = getattr(self, name)
            found |= {f"{name}/layer_{layer}": value for layer, value in enumerate(values)}
        return found

    def said(self) -> str:
        """One line."""
        error, active, dead = (statistics.fmean(part) for part in (self.nmse, self.l0, self.dead))
        return (
            f"step {self.step:,} of {self.steps:,}: NMSE {error:.3f}, L0 {active:.1f}, "
            f"dead {100 * dead:.1f} %"
        )


def restored(values: dict[str, Any]) -> Moment:
    """A moment from its JSON values."""
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Moment(**(values | lists))


def worries(now: Moment, before: Sequence[Moment]) -> tuple[str, ...]:
    """What is worrying at a moment and was not said before."""
    said = {worry.split(":")[0] for moment in before for worry in moment.warnings}
    found = [*_dead(now), *_useless(now), *_exploding(now, before)]
    return tuple(worry for worry in found if worry.split(":")[0] not in said)


def _dead(now: Moment) -> list[str]:
    return [
        f"layer {layer} loses its features: {100 * share:.0f} % have not fired lately; fewer "
        "features, a lower rate or a larger k would keep them in use"
        for layer, share in enumerate(now.dead)
        if share > DEAD and now.step >= SETTLED * now.steps
    ]


def _useless(now: Moment) -> list[str]:
    return [
        f"layer {layer} does not learn: NMSE is {error:.2f} after {now.step:,} steps, and 1 is "
        "what a constant reaches; try another rate, a larger k or more text"
        for layer, error in enumerate(now.nmse)
        if error > USELESS and now.step >= SETTLED * now.steps
    ]


def _exploding(now: Moment, before: Sequence[Moment]) -> list[str]:
    norms = [moment.norm for moment in before[-20:]]
    if len(norms) < 5 or now.norm <= EXPLODED * statistics.median(norms):
        return []
    times = now.norm / statistics.median(norms)
    return [
        f"gradients explode: their norm is {now.norm:.2g}, {times:.0f} times the usual; a lower "
        "rate would help"
    ]
