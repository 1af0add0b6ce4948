"""`compare`: from prompts or graphs to a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from circuit_tracer.comparing.activity import Activity, Fired, activity, gathered
from circuit_tracer.comparing.comparison import Comparison, SharedEdge, SharedFeature, Side
from circuit_tracer.comparing.corpus import Corpus, bundled_corpus, read_corpus
from circuit_tracer.comparing.decoder_baseline import DecoderBaseline
from circuit_tracer.comparing.matching import Group, by_decoder, by_id
from circuit_tracer.comparing.overlap import Overlap, measure
from circuit_tracer.comparing.profile import Profile
from circuit_tracer.comparing.roles import Role, aligned
from circuit_tracer.comparing.settings import of_all, of_each
from circuit_tracer.comparing.wording import notices
from circuit_tracer.errors import InputError
from circuit_tracer.features.graphs import annotate_bundled
from circuit_tracer.features.graphs import name as call
from circuit_tracer.features.labels import Labels
from circuit_tracer.graph import Graph
from circuit_tracer.loading import BUNDLED, load
from circuit_tracer.prune import NODES
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.tracing import trace

Given = str | Sequence[int] | Path | Graph
Baseline = Literal["auto"] | None | str | Path | Corpus | Mapping[str, Sequence[str]]
Progress = Callable[[float, str], None]
Match = Literal["id", "decoder"]

ROWS, TRACED, SAYS = 30, 4, 3


def compare(
    prompts: Mapping[str, Given] | Iterable[tuple[str, Given]],
    model: ReplacementModel | Mapping[str, ReplacementModel] | None = None,
    baseline: Baseline = "auto",
    match: Match = "id",
    nodes: float = NODES,
    rows: int = ROWS,
    traced: int = TRACED,
    progress: Progress | None = None,
    labels: Labels | None = None,
    **settings: Any,
) -> Comparison:
    """Lay graphs side by side: several languages, prompts, checkpoints or transcoder sets.

    Args:
        prompts: name → text or token ids to trace, a `Graph`, or a `Path` to a saved one. A name
            that is a language of the corpus is compared with its baseline.
        model: traces the texts; by name where each has its own. None loads the bundled model if
            anything is to be traced.
        baseline: a parallel corpus: a path, a `Corpus`, or language → texts, row by row. "auto" is
            the bundled corpus for the bundled model, and none for others. Where decoders are
            matched, its texts are run by each model, whatever their language.
        match: "id": features are one where layer and id are. "decoder": where they write alike (see
            `matching`), for graphs of different checkpoints or transcoders; needs a model for each.
        nodes: share of the influence that each circuit holds; features in any circuit are
            considered.
        rows: of the corpus that are run, at most.
        traced: of these, how many are traced too, for influence-weighted baselines.
        progress: called with (share done, message).
        labels: from `features.labels.read`: what features are called, before what a graph says.
        settings: further arguments of `trace`: a value for all prompts, or name → value, such as
            `targets={"en": [" large"], "fr": [" grand"]}`.

    Raises:
        InputError: fewer than two graphs, a name given twice, an empty graph, graphs of different
            models or transcoders, a baseline without a model to run it, a setting for a name that
            is not there or for a graph.

    Example:
        >>> import circuit_tracer as ct
        >>> texts = {"en": "The opposite of small is", "zh": "小的反义词是"}
        >>> found = ct.compare(texts, baseline=None)
        >>> len(found.shared) > 20
        True
    """
    given = _named(prompts)
    to_trace = [name for name, value in given.items() if not isinstance(value, Graph | Path)]
    own = of_each(given, to_trace, settings)
    tell = progress or (lambda done, message: None)
    if model is None and to_trace:
        tell(0.0, "loading the model")
        model = load()
    models = _models(model, list(given))
    one = next(iter(models.values())) if len(set(map(id, models.values()))) == 1 else None
    corpus = _corpus(baseline, list(given), models, match, rows)
    profiles = _profiles(given, models, nodes, own, tell, labels or {})
    groups = _matched(profiles, models, match)
    fired = light = written = None
    if corpus is not None and match == "decoder":
        written = DecoderBaseline(models, corpus, _part(tell, 0.4, 1.0))
    elif corpus is not None and one is not None:
        fired = activity(one, corpus, _part(tell, 0.4, 0.7))
        light = (
            _traced(one, corpus, traced, of_all(settings), _part(tell, 0.7, 1.0))
            if traced
            else None
        )
    made = _Assembly(profiles, groups, match, one, fired, light, written)
    return made.comparison(corpus is not None)


class _Assembly:
    """Matched features as tables: a row a feature, a column a graph."""

    def __init__(
        self,
        profiles: list[Profile],
        groups: list[Group],
        match: Match,
        model: ReplacementModel | None,
        fired: Activity | None,
        light: Activity | None,
        written: DecoderBaseline | None,
    ):
        self.profiles, self.match, self.model = profiles, match, model
        self.fired, self.light, self.written = fired, light, written
        self.names = [profile.name for profile in profiles]
        self.rows = torch.tensor([[each.get(name, -1) for name in self.names] for each in groups])
        self.active = self.rows >= 0
        self.layers = torch.tensor([self._layer(each) for each in groups])
        self.influence = self._table("influence")
        self.kept = self._table("kept").bool()

    def comparison(self, corpus_given: bool) -> Comparison:
        overlap = self._overlap()
        chosen = self.kept.any(1).nonzero()[:, 0]
        features = [self._feature(row) for row in chosen.tolist()]
        order = sorted(range(len(features)), key=lambda k: (-features[k].total, int(chosen[k])))
        chosen, features = chosen[order], [features[k] for k in order]
        flows = [
            profile.flows(self.rows[chosen, column].tolist(), len(chosen))
            for column, profile in enumerate(self.profiles)
        ]
        absent = self.names if self.fired is None else self.fired.corpus.languages
        return Comparison(
            sides=tuple(self._side(column, chosen) for column in range(len(self.profiles))),
            features=tuple(features),
            edges=self._edges(chosen, flows),
            roles=self._roles(chosen, features, flows),
            overlap=overlap,
            n_layers=self.profiles[0].graph.index.n_layers,
            match=self.match,
            circuits=tuple(profile.circuit for profile in self.profiles),
            notices=notices(
                overlap,
                [name for name in self.names if name not in absent],
                corpus_given,
                len({profile.graph.provenance.prompt for profile in self.profiles}) == 1,
            ),
        )

    def _overlap(self) -> Overlap:
        sizes = None
        if self.model is not None:
            transcoders = self.model.transcoders
            sizes = [len(transcoders.layer(k).encoder) for k in range(transcoders.n_layers)]
        found = measure(
            self.names,
            self.layers,
            self.influence,
            self.active.double(),
            self.profiles[0].graph.index.n_layers,
            sizes,
            self.fired,
            self.light,
            None if self.written is None else self.written.baselines,
        )
        if self.written is None:
            return found
        corpus = self.written.corpus
        return replace(found, corpus=corpus.name, rows=len(corpus))

    def _feature(self, row: int) -> SharedFeature:
        found = {
            profile.name: (profile, place)
            for profile, place in zip(self.profiles, self.rows[row].tolist(), strict=True)
            if place >= 0
        }
        keys = {name: tuple(profile.keys[at].tolist()) for name, (profile, at) in found.items()}
        layer, ids = int(self.layers[row]), dict.fromkeys(keys[name][1] for name in sorted(keys))
        notes = [profile.graph.notes.get(keys[name]) for name, (profile, _) in found.items()]
        labels = sorted({note.label for note in notes if note is not None and note.label})
        says = sorted({tuple(t for t, _ in n.promoted[:SAYS]) for n in notes if n and n.promoted})
        return SharedFeature(
            layer=layer,
            ids={name: key[1] for name, key in keys.items()},
            influence={name: float(p.influence[at]) for name, (p, at) in found.items()},
            activation={name: float(p.activation[at]) for name, (p, at) in found.items()},
            positions={name: p.positions[at] for name, (p, at) in found.items()},
            kept=tuple(name for name, (p, at) in found.items() if p.kept[at]),
            label=labels[0] if labels else f"L{layer}#{'/'.join(map(str, ids))}",
            says=says[0] if says else (),
            spread=None if self.fired is None else self.fired.spread(min(keys.values())),
        )

    def _side(self, column: int, chosen: Tensor) -> Side:
        profile, mine = self.profiles[column], self.rows[chosen, column]
        graph = profile.graph
        return Side(
            name=profile.name,
            prompt=graph.provenance.prompt,
            tokens=graph.tokens,
            targets=tuple((target.label, target.weight) for target in graph.targets),
            model=graph.provenance.model,
            transcoders=graph.provenance.transcoders,
            n_active=len(profile.keys),
            n_kept=int(profile.kept.sum()),
            considered=float(profile.influence[mine[mine >= 0]].sum()),
        )

    def _edges(self, chosen: Tensor, flows: Sequence[Tensor]) -> tuple[SharedEdge, ...]:
        kept: dict[tuple[int, int], list[str]] = {}
        for column, profile in enumerate(self.profiles):
            place = {row: k for k, row in enumerate(self.rows[chosen, column].tolist()) if row >= 0}
            for ends in profile.kept_edges:
                source, target = (place[profile.places[key]] for key in ends)
                kept.setdefault((source, target), []).append(profile.name)
        edges = []
        for (source, target), names in kept.items():
            values = [float(flow[target, source]) for flow in flows]
            pairs = zip(self.names, values, strict=True)
            shares = {name: value for name, value in pairs if value > 0}
            edges.append(SharedEdge(source, target, shares, tuple(names)))
        return tuple(sorted(edges, key=lambda edge: (-edge.total, edge.source, edge.target)))

    def _roles(
        self,
        chosen: Tensor,
        features: list[SharedFeature],
        flows: Sequence[Float[Tensor, "target source"]],
    ) -> tuple[Role, ...]:
        found = []
        groups = aligned(self.names, self.kept[chosen], self.active[chosen], flows)
        for group, similarity in groups:
            members = {name: features[k] for name, k in sorted(group.items())}
            keys = {name: (f.layer, f.ids[name]) for name, f in members.items()}
            held = sum(f.influence[name] for name, f in members.items())
            found.append(Role(keys, similarity, held))
        return tuple(
            sorted(found, key=lambda role: (-role.influence, sorted(role.members.items())))
        )

    def _layer(self, group: Group) -> int:
        name, row = min(group.items())
        return int(self.profiles[self.names.index(name)].keys[row, 0])

    def _table(self, what: str) -> Float[Tensor, "feature graph"]:
        columns = []
        for column, profile in enumerate(self.profiles):
            values, mine = getattr(profile, what).double(), self.rows[:, column]
            columns.append(values[mine.clamp(min=0)].where(mine >= 0, 0.0))
        return torch.stack(columns, 1)


def _named(prompts: Mapping[str, Given] | Iterable[tuple[str, Given]]) -> dict[str, Given]:
    pairs = list(prompts.items() if isinstance(prompts, Mapping) else prompts)
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{twice[0]!r} names two prompts; give each a name of its own")
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise InputError(f"a name is text, such as 'en', not {wrong[0]!r}")
    if len(pairs) < 2:
        raise InputError(f"comparing takes at least two prompts or graphs, not {len(pairs)}")
    return dict(pairs)


def _models(
    model: ReplacementModel | Mapping[str, ReplacementModel] | None, names: list[str]
) -> dict[str, ReplacementModel]:
    """By name; empty where there is none."""
    if model is None:
        return {}
    if isinstance(model, ReplacementModel):
        return dict.fromkeys(names, model)
    if set(model) != set(names):
        raise InputError(f"models are given for {sorted(model)}, prompts for {sorted(names)}")
    return {name: model[name] for name in names}


def _profiles(
    given: dict[str, Given],
    models: dict[str, ReplacementModel],
    nodes: float,
    settings: dict[str, dict[str, Any]],
    tell: Progress,
    labels: Labels,
) -> list[Profile]:
    profiles = []
    for number, (name, value) in enumerate(given.items()):
        tell(0.4 * number / len(given), f"tracing {name}")
        if isinstance(value, Path):
            value = Graph.read(value)
            annotate_bundled(value)
        if not isinstance(value, Graph):
            try:
                value = trace(value, models[name], **settings[name])
            except InputError as error:
                raise InputError(f"prompt {name!r}: {error}") from error
        call(value, labels)
        profiles.append(Profile.of(name, value, nodes))
    return profiles


def _matched(
    profiles: list[Profile], models: dict[str, ReplacementModel], match: Match
) -> list[Group]:
    """Groups of features, in an order that does not depend on that of the graphs."""
    layers = {profile.graph.index.n_layers for profile in profiles}
    if len(layers) > 1:
        raise InputError(
            f"graphs of models with {' and '.join(map(str, sorted(layers)))} layers cannot be "
            "compared"
        )
    if match == "decoder":
        if not models:
            raise InputError('match="decoder" needs model=, by name, to read decoders from')
        return by_decoder(profiles, [models[profile.name] for profile in profiles])
    if match != "id":
        raise InputError(f'match must be "id" or "decoder", not {match!r}')
    if len({id(model) for model in models.values()}) > 1:
        _same([(model.adapter.name, model.transcoders.name) for model in models.values()])
    _same([(p.graph.provenance.model, p.graph.provenance.transcoders) for p in profiles])
    return by_id(profiles)


def _same(origins: list[tuple[str, str]]) -> None:
    if len(set(origins)) > 1:
        said = "; ".join(
            f"{model} with {transcoders}" for model, transcoders in sorted(set(origins))
        )
        raise InputError(
            f"these graphs are of different models or transcoders ({said}), whose feature ids have "
            'nothing to do with each other; compare what they write with match="decoder" '
            "(--match decoder)"
        )


def _corpus(
    baseline: Baseline,
    names: list[str],
    models: dict[str, ReplacementModel],
    match: Match,
    rows: int,
) -> Corpus | None:
    """The rows of the baseline in the languages compared; None for no baseline.

    Where decoders are matched the names are no languages: there every graph gets every text.
    """
    if baseline is None:
        return None
    different = len(set(map(id, models.values()))) > 1 and match == "id"
    if baseline == "auto":
        if different or {model.adapter.name for model in models.values()} != {BUNDLED}:
            return None
        whole = bundled_corpus()
    elif isinstance(baseline, Corpus):
        whole = baseline
    elif isinstance(baseline, Mapping):
        whole = _rows(baseline)
    else:
        whole = read_corpus(baseline)
    if rows < 2:
        raise InputError(f"a baseline takes at least 2 rows, not {rows}")
    if not models or different:
        raise InputError("a baseline is run on the model of the graphs: pass it as model=")
    if match == "decoder":
        return (whole if set(names) <= set(whole.languages) else _each(whole, names)).sample(rows)
    spoken = sorted(set(names) & set(whole.languages))
    if len(spoken) < 2:
        if baseline == "auto":
            return None
        raise InputError(
            f"{whole.name} has columns {', '.join(whole.languages)}; name at least two prompts so"
        )
    return whole.sample(rows).only(spoken)


def _each(corpus: Corpus, names: list[str]) -> Corpus:
    """Every text of a corpus, in whatever language, once for each name."""
    pairs = zip(corpus.rows, corpus.groups, strict=True)
    found = {text: group for row, group in pairs for text in row}
    rows = tuple((text,) * len(names) for text in found)
    return Corpus(tuple(names), rows, tuple(found.values()), corpus.name)


def _rows(texts: Mapping[str, Sequence[str]]) -> Corpus:
    counts = {language: len(each) for language, each in texts.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"the baseline is ragged: its languages have {counts} texts")
    rows = tuple(zip(*texts.values(), strict=True))
    return Corpus(tuple(texts), rows, tuple(map(str, range(len(rows)))), "the given corpus")


def _traced(
    model: ReplacementModel,
    corpus: Corpus,
    rows: int,
    settings: dict[str, Any],
    progress: Progress,
) -> Activity | None:
    """Influence on a few rows of the corpus, traced like the prompts, to their likeliest tokens."""
    if rows < 2:
        raise InputError(f"traced must be 0 or at least 2 rows, not {rows}")

    def fired(text: str) -> list[Fired]:
        profile = Profile("", graph := trace(text, model, **settings), graph.prune(nodes=0.0))
        layers = [profile.keys[:, 0] == layer for layer in range(graph.index.n_layers)]
        return [(profile.keys[mine, 1], profile.influence[mine]) for mine in layers]

    sizes = [len(model.transcoders.layer(k).encoder) for k in range(model.adapter.n_layers)]
    return gathered(corpus.sample(rows), fired, sizes, progress)


def _part(tell: Progress, start: float, end: float) -> Progress:
    return lambda done, message: tell(start + (end - start) * done, message)
