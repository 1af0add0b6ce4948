"""The faithfulness card: how far a graph agrees with the model it speaks of, in numbers and words.

Plain data, kept in the graph's file. The numbers are measured by `verify`; what they mean is said
here, beside what is published for the method's own models. Every one of them can fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PUBLISHED_SPEARMAN, PUBLISHED_COSINE, PUBLISHED_NMSE = 0.72, 0.8, 0.4
"""Ameisen et al. 2025: Spearman of influence against ablation, and cosine and normalised squared
error of predicted changes one layer on, of Claude 3.5 Haiku's cross-layer transcoders."""

FAIR_COSINE, FAIR_NMSE, FAIR_SHARE, FAIR_JACOBIAN = 0.5, 1.0, 0.5, 0.5
"""A prediction worse than none at all has a normalised error above 1."""

MOST_FAILED = 2
"""Random transcoders fail three checks at least: edges between any features, also meaningless ones,
are exact and rank ablations well, but their paths explode and their circuits do nothing."""

LIMITS = (
    "Attention patterns are frozen in every graph: why a head looks where it looks is no part of "
    "it, and predictions are compared with runs that hold patterns too.",
    "An edge is a direct effect: what features do together, and what switches others on, shows "
    "in the measured changes only.",
    "Error nodes stand for what the transcoders miss; influence from there is not explained.",
    "One prompt was tested; another may fare better or worse.",
)


@dataclass(frozen=True)
class Correlation:
    """Spearman of influence against what ablating a feature does.

    Attributes:
        measured: what was: "targets", the weighted mean of |change| of the targets' values, or
            "kl", of the next token.
        ablations: pairs.
        value, low, high: with its 95 % bootstrap interval.
        null: what 97.5 % of shuffles among features of the same position stay below.
    """

    measured: str
    ablations: int
    value: float
    low: float
    high: float
    null: float


@dataclass(frozen=True)
class StepsOn:
    """Predicted against measured changes of activations, so many layers above the ablated feature.

    Attributes:
        layers: how many on.
        ablations: how many moved anything there.
        cosine, direct_cosine: mean over ablations; along all paths, and of the direct edges alone.
        nmse: Σ ‖predicted − measured‖² / Σ ‖measured‖², along all paths.
        outside: share of the measured squared change that is in features without a row in the
            graph: those that came on, and those not expanded. The other figures leave it out.
    """

    layers: int
    ablations: int
    cosine: float
    direct_cosine: float
    nmse: float
    outside: float


@dataclass(frozen=True)
class Necessity:
    """What the targets lose without the circuit's features.

    Attributes:
        mode: "free" or "constrained".
        before, after: weighted mean of the targets' values.
        random_after: without as many random features.
        probability_before, probability_after, random_probability: of the likeliest target that is a
            token; the last the mean over random sets.
    """

    mode: str
    before: float
    after: float
    random_after: tuple[float, ...]
    probability_before: float | None
    probability_after: float | None
    random_probability: float | None

    @property
    def ok(self) -> bool:
        """Whether no random set takes as much away."""
        return self.before - self.after > max(abs(self.before - one) for one in self.random_after)


@dataclass(frozen=True)
class Sufficiency:
    """What of the targets the circuit's features make alone.

    Attributes:
        errors: whether the errors were kept.
        full, empty, value: weighted mean of the targets' values: of the model, without any feature,
            with those of the circuit.
        random: with as many random features.
        probability_before, probability: of the likeliest target that is a token.
    """

    errors: bool
    full: float
    empty: float
    value: float
    random: tuple[float, ...]
    probability_before: float | None
    probability: float | None

    @property
    def share(self) -> float | None:
        """(value − empty) / (full − empty); None where features make no difference."""
        return self.share_of(self.value)

    @property
    def random_share(self) -> float | None:
        return self.share_of(sum(self.random) / len(self.random))

    def share_of(self, value: float) -> float | None:
        return (value - self.empty) / (self.full - self.empty) if self.full != self.empty else None


@dataclass(frozen=True)
class Faithfulness:
    """How far a graph agrees with its model on its prompt.

    Attributes:
        edge_error: normalised squared error of edges against ablations in the direct mode, where
            they must agree to rounding: what it finds is a graph that is not of this model.
        edge_tolerance: how much of it rounding may be, by the model's number type.
        correlations: influence against ablation.
        steps: predicted against measured changes.
        circuit_features, active_features: how many the circuit has, of how many that are active.
        necessity: free and constrained.
        sufficiency: with the errors and without.
        error_share_by_layer: share of the influence that starts at the errors of each layer.
        jacobian_by_layer: cosine of the MLP's and the transcoder's answer to random nudges.
        jacobian_by_writes: likewise, nudges along what features of lower layers write.
        model, transcoders: what it was measured on.
    """

    edge_error: float
    edge_tolerance: float
    correlations: tuple[Correlation, ...]
    steps: tuple[StepsOn, ...]
    circuit_features: int
    active_features: int
    necessity: tuple[Necessity, ...]
    sufficiency: tuple[Sufficiency, ...]
    error_share_by_layer: tuple[float, ...]
    jacobian_by_layer: tuple[float | None, ...]
    jacobian_by_writes: tuple[float | None, ...]
    model: str
    transcoders: str

    def __str__(self) -> str:
        rows = self.table()
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{width}}  {said}" for name, said in rows]
        return "\n".join([self.verdict, *lines, *LIMITS])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: as `print` shows it."""
        printer.text(str(self))

    @property
    def checks(self) -> tuple[tuple[str, bool], ...]:
        """What was asked, and whether it holds."""
        found = [("the edges are those of this model", self.edge_error < self.edge_tolerance)]
        if self.correlations:
            ranked = self.correlations[0]
            found.append(
                ("influence ranks features as ablation does", ranked.low > max(ranked.null, 0))
            )
        for step in self.steps[:2]:
            good = step.cosine >= FAIR_COSINE and step.nmse < FAIR_NMSE
            layers = f"{step.layers} layer{'' if step.layers == 1 else 's'}"
            found.append((f"paths foretell what an ablation changes {layers} on", good))
        for one in (one for one in self.necessity if one.mode == "constrained"):
            found.append(("the circuit is needed more than random features are", one.ok))
        for kept in self.sufficiency[:1]:
            enough = kept.share is not None and kept.share >= FAIR_SHARE
            beyond = kept.value > max(kept.random)
            found.append(("the circuit alone makes half of what features add", enough and beyond))
        errors = sum(self.error_share_by_layer)
        found.append(("errors carry less than half of the influence", errors < FAIR_SHARE))
        jacobian = self.mean_jacobian
        if jacobian is not None:
            name = f"transcoders answer small changes as the MLPs do (cosine {jacobian:.2f})"
            found.append((name, jacobian >= FAIR_JACOBIAN))
        return tuple(found)

    @property
    def mean_jacobian(self) -> float | None:
        """Mean over layers that have a transcoder, along what lower features write where any do."""
        for by_layer in (self.jacobian_by_writes, self.jacobian_by_layer):
            known = [value for value in by_layer if value is not None]
            if known:
                return sum(known) / len(known)
        return None

    @property
    def verdict(self) -> str:
        """In a sentence or two: what held and what did not."""
        checks = self.checks
        if not checks[0][1]:
            return (
                "Not true: the edges are not what this model does "
                f"(normalised error {self.edge_error:.2g} where it should be 0). The graph is of "
                "another model or other transcoders, or was changed."
            )
        failed = [name for name, good in checks if not good]
        count = f"{len(checks) - len(failed)} of {len(checks)} checks hold"
        if not failed:
            return f"Borne out on this prompt: {count}."
        word = "Partly borne out" if len(failed) <= MOST_FAILED else "Not to be relied on"
        return f"{word}: {count}. It is not so that {'; nor that '.join(failed)}."

    def table(self) -> list[tuple[str, str]]:
        """(name, said), with published figures beside ours."""
        rows = [("edges, direct mode", f"normalised error {self.edge_error:.1e}")]
        names = {"targets": "targets' values", "kl": "KL of the next token"}
        for number, one in enumerate(self.correlations):
            published = f"; published {PUBLISHED_SPEARMAN}" if number == 0 else ""
            rows.append(
                (
                    f"Spearman, {names.get(one.measured, one.measured)}",
                    f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f}), chance below "
                    f"{one.null:.2f}, {one.ablations} ablations{published}",
                )
            )
        for step in self.steps:
            first = f"; published about {PUBLISHED_COSINE}, {PUBLISHED_NMSE}"
            rows.append(
                (
                    f"{step.layers} layer{'' if step.layers == 1 else 's'} on",
                    f"cosine {step.cosine:.2f} (edges alone {step.direct_cosine:.2f}), normalised "
                    f"error {step.nmse:.2f}, {step.outside:.0%} of the change outside the graph"
                    + (first if step.layers == 1 else ""),
                )
            )
        size = f"{self.circuit_features:,} of {self.active_features:,} features"
        if not self.necessity:
            rows.append(("the circuit", "holds no features"))
        rows += [(f"without the circuit, {one.mode}", _lost(one, size)) for one in self.necessity]
        rows += [
            (f"circuit alone, {'errors kept' if one.errors else 'no errors'}", _left(one))
            for one in self.sufficiency
        ]
        rows.append(("error share by layer", _series(self.error_share_by_layer)))
        rows.append(("Jacobian cosine, random", _series(self.jacobian_by_layer)))
        rows.append(("Jacobian cosine, writes", _series(self.jacobian_by_writes)))
        return rows

    def section(self) -> tuple[tuple[str, str], ...]:
        """The whole card as (name, said), the verdict first and the known limits last."""
        return ("verdict", self.verdict), *self.table(), ("known limits", " ".join(LIMITS))

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it; `from_plain` gives it back."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Faithfulness:
        """From `to_plain` after a journey through JSON. ValueError for anything else."""
        parts = {
            "correlations": Correlation,
            "steps": StepsOn,
            "necessity": Necessity,
            "sufficiency": Sufficiency,
        }
        try:
            made: dict[str, Any] = {
                name: tuple(_part(parts[name], one) for one in value)
                if name in parts
                else (tuple(value) if isinstance(value, list) else value)
                for name, value in values.items()
            }
            card = cls(**made)
            str(card)  # reads every field
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the faithfulness card cannot be read: {error}") from error
        return card


def _part(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _lost(one: Necessity, size: str) -> str:
    chance = sum(one.random_after) / len(one.random_after)
    said = f"targets {one.before:.2f} → {one.after:.2f}, random {chance:.2f} ({size})"
    return said + _chances(one.probability_before, one.probability_after, one.random_probability)


def _left(one: Sufficiency) -> str:
    if one.share is None or one.random_share is None:
        return "features make no difference to the targets"
    said = f"{one.share:.0%} of what features add to the targets, random {one.random_share:.0%}"
    return said + _chances(one.probability_before, one.probability, None)


def _chances(before: float | None, after: float | None, chance: float | None) -> str:
    if before is None or after is None:
        return ""
    said = f"; probability {before:.1%} → {after:.1%}"
    return said if chance is None else f"{said}, random {chance:.1%}"


def _series(values: tuple[float | None, ...]) -> str:
    return " ".join("–" if value is None else f"{value:.2f}" for value in values)
