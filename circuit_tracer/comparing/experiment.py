"""Swap experiments: the same swap in every language, and how often it succeeds.

Each language brings a receiver and a donor, which differ in what is to be swapped (the opposite of
small, the opposite of hot: an operand; the opposite of small, a synonym of small: an operation).

    here       the donor of each language into its receiver
    abroad     the donor of every other language into each receiver: what the donor's language has
               alone for this operand, found beside that language's own receiver
    language   every receiver into every other, features specific to one of the two languages alone

Strengths and end layers are swept; what is reported is the setting at which most swaps succeed, one
for all, and the null at its own best. Both are chosen afterwards, the null's too, which is what
makes them comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from circuit_tracer.comparing.activity import activity
from circuit_tracer.comparing.alignment import abroad, differing
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.profile import Key
from circuit_tracer.comparing.swap import STRENGTHS, Swap, language_features, swap
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.prune import NODES
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import answer_tokens
from circuit_tracer.tracing import trace
from circuit_tracer.view.curves import Panel, figure

Kind = Literal["here", "abroad", "language"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Setting = tuple[float, int | None]
"""(strength, end layer)"""
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Tried:
    """A swap into the prompt of one name, from that of another."""

    into: str
    origin: str
    swap: Swap


@dataclass(frozen=True)
class Experiment:
    """Swaps of one kind, in several languages.

    Attributes:
        kind: "here", "abroad" or "language".
        tried: all swaps, which share their strengths and end layers.
        left_out: (into, origin) of those that could show nothing: the receiver says already what is
            wanted.
    """

    kind: str
    tried: tuple[Tried, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the receivers."""
        return tuple(dict.fromkeys(one.into for one in self.tried))

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every strength with every end layer, in the order of the sweep."""
        found = ((t.strength, t.end) for one in self.tried for t in one.swap.trials)
        return tuple(dict.fromkeys(found))

    def successes(self, setting: Setting, name: str | None = None, null: bool = False) -> int:
        """How many swaps (or nulls) succeed at a setting, into one receiver or into all."""
        return sum(
            trial.null_success if null else trial.success
            for one in self.tried
            for trial in one.swap.trials
            if (trial.strength, trial.end) == setting and name in (None, one.into)
        )

    @cached_property
    def best(self) -> Setting:
        """Where most swaps succeed; of equals the weakest, then the first of the sweep."""
        return self._best(null=False)

    @cached_property
    def null_best(self) -> Setting:
        """Where most nulls succeed."""
        return self._best(null=True)

    def rows(self) -> list[tuple[str, ...]]:
        """Success by language as cells of text, the heading first."""
        kinds = (
            ("swap", self.best, False),
            ("null, there", self.best, True),
            ("null, at its best", self.null_best, True),
        )
        head = ("", "strength", "end layer", *self.names, "all")
        return [head, *(self._row(*kind) for kind in kinds)]

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self) | {
            "best": self.best,
            "null_best": self.null_best,
            "success": [dict(zip(self.rows()[0], row, strict=True)) for row in self.rows()[1:]],
        }

    def figure(self) -> Any:
        """A plotly figure: mean probability of what is wanted by strength, a curve an end layer,
        for the swaps and the nulls; then each language at the best end layer."""
        ends = list(dict.fromkeys(end for _, end in self.settings))
        panels = [
            Panel(
                title,
                "strength",
                "probability of what is wanted",
                {ending(end): self._curve(self.tried, end, null) for end in ends},
            )
            for title, null in (("swaps", False), ("nulls", True))
        ]
        for name in self.names:
            mine, end = [one for one in self.tried if one.into == name], self.best[1]
            curves = {"null": self._curve(mine, end, True), "swap": self._curve(mine, end, False)}
            title = f"into {name}, {ending(end)}"
            panels.append(Panel(title, "strength", "probability of what is wanted", curves))
        drawn = figure(panels).update_traces(mode="lines+markers")
        for number, curve in enumerate(drawn.data):
            shown = number < len(ends) or 2 * len(ends) <= number < 2 * len(ends) + 2
            curve.update(legendgroup=curve.name, showlegend=shown)
        return drawn.update_layout(showlegend=True).update_yaxes(range=[-0.02, 1.02])

    def _best(self, null: bool) -> Setting:
        return max(self.settings, key=lambda one: (self.successes(one, null=null), -one[0]))

    def _row(self, said: str, setting: Setting, null: bool) -> tuple[str, ...]:
        counts = [
            f"{self.successes(setting, name, null)}/{sum(t.into == name for t in self.tried)}"
            for name in self.names
        ]
        whole = f"{self.successes(setting, null=null)}/{len(self.tried)}"
        return (said, f"{setting[0]:g}", end_name(setting[1]), *counts, whole)

    def _curve(
        self, tried: Collection[Tried], end: int | None, null: bool
    ) -> tuple[list[float], list[float]]:
        """(strengths, mean probabilities)."""
        strengths = [strength for strength, one in self.settings if one == end]
        means = []
        for strength in strengths:
            values = [
                trial.null_probability if null else trial.probability
                for one in tried
                for trial in one.swap.trials
                if (trial.strength, trial.end) == (strength, end)
            ]
            means.append(sum(values) / len(values))
        return strengths, means


def end_name(end: int | None) -> str:
    """An end layer in a table."""
    return "free" if end is None else str(end)


def ending(end: int | None) -> str:
    return "free" if end is None else f"end layer {end}"


def experiment(
    receivers: Mapping[str, str | Graph],
    donors: Mapping[str, str | Graph],
    model: ReplacementModel,
    kind: Kind = "here",
    wanted: Mapping[str, str] | None = None,
    among: Collection[Key] | None = None,
    corpus: Corpus | None = None,
    strengths: Sequence[float] = STRENGTHS,
    ends: Sequence[int | None] | None = None,
    nodes: float = NODES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Experiment:
    """Swap in every language, with a null beside each swap.

    Args:
        receivers: name → text or graph, at least one, or two for "abroad" and "language".
        donors: the same names. For "language" they only say where the operand stands, and may be
            left out ({}).
        kind: see the module.
        wanted: by the name of the prompt that says it (for "language" of the receivers, else of the
            donors), the answer to wait for; None, or a name that is not there, for its likeliest
            next token.
        among: only these (layer, id).
        corpus: says which features are specific to a language; "language" needs it, and its
            languages are the names.
        strengths, ends, nodes, seed: as in `swap`; `ends` None for every layer.
        progress: called with (share done, message).

    Raises:
        InputError: names that do not fit, a language the corpus lacks, prompts that all say already
            what is wanted, and as `swap`.

    Example:
        >>> import circuit_tracer as ct
        >>> small, hot = "The opposite of small is", "The opposite of hot is"
        >>> found = experiment({"en": small}, {"en": hot}, ct.load(), ends=[5])
        >>> found.successes(found.best), found.tried[0].swap.wanted
        (1, ' cold')
    """
    _check(receivers, donors, wanted or {}, kind, corpus)
    tell = progress or (lambda done, message: None)
    graphs = _Prompts(receivers, donors, model, tell)
    ends = range(model.adapter.n_layers) if ends is None else ends
    specific: dict[str, set[Key]] = {}
    if kind == "language" and corpus is not None:
        found = activity(model, corpus, lambda done, said: tell(0.3 + 0.4 * done, said))
        specific = {name: language_features(found, name) for name in receivers}
    tried, left_out = [], []
    pairs = list(_pairs(list(receivers), kind))
    for number, (into, origin) in enumerate(pairs):
        tell(0.7 + 0.3 * number / len(pairs), f"swapping {origin} into {into}")
        token = graphs.wanted(into, origin, kind, wanted or {})
        if graphs.says(into) == token:
            left_out.append((into, origin))
            continue
        receiver, donor, places, contrasts = graphs.parts(into, origin, kind)
        chosen = among
        if kind == "language":
            own = specific[into] | specific[origin]
            chosen = own if among is None else own & set(among)
        made = swap(
            receiver, donor, token, model, chosen, places, contrasts, strengths, ends, nodes, seed
        )
        tried.append(Tried(into, origin, made))
    if not tried:
        raise InputError(
            "there is nothing to show: every receiver says already what is wanted; give donors "
            "with other answers"
        )
    return Experiment(kind, tuple(tried), tuple(left_out))


class _Prompts:
    """Traced receivers and donors."""

    def __init__(
        self,
        receivers: Mapping[str, str | Graph],
        donors: Mapping[str, str | Graph],
        model: ReplacementModel,
        tell: Progress,
    ):
        self.model = model
        given = [*receivers.values(), *donors.values()]
        graphs = []
        for number, one in enumerate(given):
            tell(0.3 * number / len(given), "tracing")
            graphs.append(one if isinstance(one, Graph) else trace(one, model))
        self.receivers = dict(zip(receivers, graphs, strict=False))
        self.donors = dict(zip(donors, graphs[len(receivers) :], strict=True))

    def says(self, name: str) -> int:
        """The likeliest token after a receiver."""
        return self._likeliest(self.receivers[name])

    def wanted(self, into: str, origin: str, kind: Kind, given: Mapping[str, str]) -> int:
        """What shows success: in the language of the receiver, save where that is swapped."""
        name = origin if kind == "language" else into
        graph = (self.receivers if kind == "language" else self.donors)[name]
        if name in given:
            return answer_tokens(self.model, graph.provenance.prompt, given[name])[0]
        return self._likeliest(graph)

    def parts(
        self, into: str, origin: str, kind: Kind
    ) -> tuple[Graph, Graph, dict[int, int] | None, tuple[Graph, Graph] | None]:
        """Receiver, donor, places and contrasts of a swap."""
        receiver = self.receivers[into]
        if kind == "here":
            return receiver, self.donors[into], None, None
        donor = (self.receivers if kind == "language" else self.donors)[origin]
        if not self.donors:
            return receiver, donor, None, None
        contrasts = self.donors[into], self.receivers[origin]
        other = self.donors[origin] if kind == "language" else contrasts[1]
        ids = [list(graph.token_ids) for graph in (receiver, donor, contrasts[0], other)]
        here, there = differing(ids[0], ids[2]), differing(ids[1], ids[3])
        places = abroad(here, there, len(ids[0]), len(ids[1]))
        return receiver, donor, places, None if kind == "language" else contrasts

    def _likeliest(self, graph: Graph) -> int:
        return int(self.model.run(list(graph.token_ids)).logits[-1].argmax())


def _pairs(names: list[str], kind: Kind) -> Iterable[tuple[str, str]]:
    """(into, origin)."""
    if kind == "here":
        return [(name, name) for name in names]
    return [(into, origin) for into in names for origin in names if into != origin]


def _check(
    receivers: Mapping[str, Any],
    donors: Mapping[str, Any],
    wanted: Mapping[str, str],
    kind: str,
    corpus: Corpus | None,
) -> None:
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(map(repr, KINDS))}, not {kind!r}")
    least = 1 if kind == "here" else 2
    if len(receivers) < least:
        raise InputError(f'a swap of kind "{kind}" takes {least} receivers at least')
    if set(donors) != set(receivers) and (donors or kind != "language"):
        raise InputError(
            f"every receiver needs a donor: receivers are {', '.join(receivers)}, donors "
            f"{', '.join(donors) or 'none'}"
        )
    strange = [name for name in wanted if name not in receivers]
    if strange:
        raise InputError(f"nothing is called {strange[0]!r}; names are {', '.join(receivers)}")
    if kind == "language":
        lacking = list(receivers) if corpus is None else set(receivers) - set(corpus.languages)
        if lacking:
            has = "" if corpus is None else f"; {corpus.name} has {', '.join(corpus.languages)}"
            raise InputError(
                f"which features are of a language is found on a corpus with a column for it; "
                f"there is none for {', '.join(sorted(lacking))}{has}"
            )
