"""How a set of transcoders is trained: every knob, with what it does.

The defaults need no tuning to give something usable: BatchTopK with revival of dead features has
one number that matters, `k`, the active features a token and layer. ReLU and JumpReLU are held to
the same `k` by a penalty that adjusts itself. Docs: docs/training.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuit_tracer.errors import InputError

Kind = Literal["plt", "clt"]
Function = Literal["topk", "batchtopk", "jumprelu", "relu"]
Start = Literal["small", "tied"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FUNCTIONS: tuple[Function, ...] = get_args(Function)
STARTS: tuple[Start, ...] = get_args(Start)

RATE, RATE_FEATURES = 3e-3, 1024


@dataclass(frozen=True)
class Settings:
    """How a set is trained.

    Attributes:
        features: features a layer.
        kind: "plt", each feature writes to its own layer, or "clt", also to every later one.
        activation: "topk" keeps the k largest a token, "batchtopk" k a token on average and turns
            into JumpReLU afterwards, "jumprelu" learns thresholds, "relu" has none.
        k: active features a token and layer (L0) that are aimed at.
        skip: add a linear map from input to output.
        start: "small" random decoders, or "tied": own-layer decoders start along the encoders.
        steps, batch: how many, and tokens in each.
        rate: peak learning rate; None for 3e-3·√(1024 / features), at most 3e-3.
        warm_up: steps until the peak.
        hold: share of the steps at the peak, before the rate falls in a line.
        floor: the last rate, as a share of the peak.
        betas: Adam's.
        clip: largest gradient norm; None for no clipping.
        dead_after: steps without firing after which a feature is dead.
        revive: weight of AuxK, the loss by which dead features explain what is left over.
        revived: dead features a token that take part; None for half the width.
        penalty: of ReLU and JumpReLU, where λ in λ·Σ tanh(sharpness·‖W_dec‖·a) starts.
        adapt: how fast λ moves, by layer, until L0 is k; 0 keeps λ fixed, after a rise over
            the first third of the steps.
        sharpness: of that tanh, in units of the scaled output.
        bandwidth: of JumpReLU's straight-through gradient, in units of the pre-activations.
        threshold_rows: tokens of a batch that BatchTopK's level is taken from.
        mixed: bfloat16 arithmetic where the device is a GPU; weights stay float32.
        seed: draws weights and data; the same seed gives the same set.
    """

    features: int
    kind: Kind = "plt"
    activation: Function = "batchtopk"
    k: int = 32
    skip: bool = False
    start: Start = "small"
    steps: int = 5000
    batch: int = 2048
    rate: float | None = None
    warm_up: int = 50
    hold: float = 0.3
    floor: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    dead_after: int = 60
    revive: float = 1 / 32
    revived: int | None = None
    penalty: float = 1e-3
    adapt: float = 0.03
    sharpness: float = 4.0
    bandwidth: float = 0.5
    threshold_rows: int = 256
    mixed: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, among in (("kind", KINDS), ("activation", FUNCTIONS), ("start", STARTS)):
            if (given := getattr(self, name)) not in among:
                raise InputError(f"{name} must be one of {', '.join(among)}, not {given!r}")
        for name in ("features", "k", "steps", "batch", "warm_up", "dead_after", "threshold_rows"):
            if (given := getattr(self, name)) < 1:
                raise InputError(f"{name} must be at least 1, not {given}")
        if self.k > self.features:
            raise InputError(f"k is {self.k}, more than the {self.features} features of a layer")
        positive = {"rate": self.peak, "clip": self.clip, "penalty": self.penalty}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a number above 0, not {value}")

    @property
    def penalised(self) -> bool:
        """Whether sparsity comes from a penalty and not from counting."""
        return self.activation in ("relu", "jumprelu")

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        if self.rate is not None:
            return self.rate
        return RATE * min(1.0, math.sqrt(RATE_FEATURES / self.features))

    def rate_at(self, step: int) -> float:
        """The learning rate at a step."""
        done = step / self.steps
        falling = 1.0 if done < self.hold else (1 - done) / (1 - self.hold)
        return self.peak * min(1.0, (step + 1) / self.warm_up) * max(self.floor, falling)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self) | {"betas": list(self.betas)}
