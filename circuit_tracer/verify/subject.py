"""What is being tested: a graph, the model it speaks of, and the clean pass of its prompt.

Everything measured is read the same way: the graph's targets, each by its own read vector through
the live (or held) final norm, and KL(clean ‖ changed) of the next token where targets are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from circuit_tracer.agreement.splicing import reconstruct
from circuit_tracer.changes import Clean
from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward
from circuit_tracer.graph import Graph
from circuit_tracer.patched import Hold, Patch
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Bool, Float, Int, Tensor
from circuit_tracer.targets import Readout, Wanted, again, choose

ENTRIES = 2**26
"""Numbers that logits or activations of the copies in one pass may come to."""
COPIES = 64


@dataclass(frozen=True, eq=False)
class Reading:
    """What became of the outputs in each copy of the prompt.

    Attributes:
        values: (B, targets), as `EdgeRows.value` is for the clean pass.
        kl: (B,) KL(clean ‖ changed) of the next token, nats, mean of the positions where targets
            are read after the last layer; zero where none is.
        probability: (B,) of the heaviest target that is a token; NaN where none is.
        sites: a layer, (B, P, d_model) at the transcoders' read site.
    """

    values: Float[Tensor, "batch target"]
    kl: Float[Tensor, " batch"]
    probability: Float[Tensor, " batch"]
    sites: Sequence[Float[Tensor, "batch position d_model"]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph, its model, and the clean pass.

    Attributes:
        readouts: the graph's targets, made again on the model.
        features: (n_features, 3) of the graph.
        activations, pre: (n_features,) on the clean pass, from the model and not from the graph.
    """

    graph: Graph
    model: ReplacementModel
    forward: Forward
    readouts: tuple[Readout, ...]
    activations: Float[Tensor, " active"]
    pre: Float[Tensor, " active"]

    @classmethod
    def of(cls, graph: Graph, model: ReplacementModel, targets: Sequence[Wanted] | None) -> Subject:
        """Run the graph's prompt again.

        Raises:
            InputError: the graph is of another model or other transcoders, or its prompt or targets
                are not known.
        """
        ids, index = list(graph.token_ids), graph.index
        if any(token < 0 for token in ids):
            raise InputError(
                "this graph does not know the token ids of its prompt (it was read from JSON); "
                "trace the prompt again to test it"
            )
        if index.n_layers != model.adapter.n_layers:
            raise InputError(
                f"this graph has {index.n_layers} layers and {model.adapter.name} has "
                f"{model.adapter.n_layers}: pass the model that it was traced on"
            )
        forward = model.run(ids)
        activations, pre = _clean(graph, model, forward)
        return cls(
            graph, model, forward, _readouts(graph, model, forward, targets), activations, pre
        )

    @property
    def features(self) -> Int[Tensor, "active 3"]:
        return self.graph.index.features

    @cached_property
    def clean(self) -> Clean:
        return Clean(self.model.transcoders, self.forward)

    @cached_property
    def weights(self) -> Float[Tensor, " target"]:
        """What each target counts, summing to 1."""
        weights = self.graph.weights
        return weights / weights.sum() if weights.sum() > 0 else torch.ones_like(weights)

    @cached_property
    def kept(self) -> Bool[Tensor, " position"]:
        """Positions whose features are in the graph."""
        kept = torch.ones(len(self.forward.token_ids), dtype=torch.bool)
        kept[[p for p in self.graph.provenance.ignored_positions if p < len(kept)]] = False
        return kept

    @cached_property
    def errors(self) -> list[Float[Tensor, "position d_model"]]:
        """Of every layer, what its transcoder misses on the clean pass, at the write site."""
        sets, forward = self.model.transcoders, self.forward
        encoded = {k: sets.encode(k, x) for k, x in enumerate(forward.mlp_inputs)}
        return [
            output - reconstruct(sets, layer, encoded, x)
            for layer, (x, output) in enumerate(
                zip(forward.mlp_inputs, forward.mlp_outputs, strict=True)
            )
        ]

    @cached_property
    def before(self) -> Reading:
        """The clean pass, read as changed ones are."""
        return self.read(Patch(self.model.adapter, self.model.transcoders, [()]), Hold())

    @property
    def copies(self) -> int:
        """How many copies of the prompt go through the model at once."""
        sets = self.model.transcoders
        widest = max(len(sets.layer(layer).encoder) for layer in sets.present)
        each = len(self.forward.token_ids) * max(self.model.adapter.vocabulary, widest)
        return max(1, min(COPIES, ENTRIES // each))

    def mean(self, reading: Reading) -> Float[Tensor, " batch"]:
        """Weighted mean of the targets' values."""
        return reading.values.cpu().double() @ self.weights

    def removal(self, rows: Sequence[int]) -> Patch:
        """A pass with one copy for each feature, in which all that it writes is taken away."""
        model = self.model
        patch = Patch(model.adapter, model.transcoders, [()] * len(rows))
        for number, row in enumerate(rows):
            self.take(patch, number, torch.tensor([row]))
        return patch

    def take(self, patch: Patch, number: int, rows: Int[Tensor, " some"]) -> None:
        """Take away what some features write on the clean pass, from one copy of the prompt."""
        transcoders, adapter = self.model.transcoders, self.model.adapter
        shape = (len(patch.batch), len(self.forward.token_ids), adapter.d_model)
        for layer in self.features[rows, 0].unique().tolist():
            mine = rows[self.features[rows, 0] == layer]
            positions, ids = self.features[mine, 1:].T
            for written in range(layer, layer + len(transcoders.layer(layer).decoders)):
                table = transcoders.decoder_rows(layer, written, ids, adapter.dtype)
                change = table.to(adapter.device) * self.activations[mine, None]
                if written not in patch.pending:
                    patch.pending[written] = change.new_zeros(shape)
                place = positions.to(adapter.device)
                patch.pending[written][number].index_add_(0, place, change, alpha=-1)

    def read(self, patch: Patch, hold: Hold) -> Reading:
        """Run the copies of a patch and read them."""
        ids = self.forward.token_ids[None].to(self.model.adapter.device)
        with patch.applied(self.forward, hold):
            logits, residual = self.outputs(ids.expand(len(patch.batch), -1))
        sites = [patch.sites[layer] for layer in range(self.model.adapter.n_layers)]
        return self.reading(logits, residual, sites, hold.norms)

    def outputs(self, ids: Int[Tensor, "batch position"]) -> tuple[Tensor, Tensor]:
        """(logits, residual stream before the final norm) of the model as it is hooked now."""
        adapter = self.model.adapter
        with torch.no_grad(), _watching(adapter.final_norm.module) as seen:
            logits = adapter.model(input_ids=ids, use_cache=False).logits
        return logits.to(adapter.device), seen[0].to(adapter.device, adapter.dtype)

    def reading(
        self,
        logits: Float[Tensor, "batch position vocabulary"],
        residual: Float[Tensor, "batch position d_model"],
        sites: Sequence[Float[Tensor, "batch position d_model"]],
        norms_held: bool = False,
    ) -> Reading:
        values = [self._value(out, residual, sites, norms_held) for out in self.readouts]
        places = sorted({out.position for out in self.readouts if out.feature is None})
        kl = torch.zeros(len(logits), dtype=torch.float64)
        for place in places:
            old = self.forward.logits[place].cpu().double().log_softmax(-1)
            new = logits[:, place].cpu().double().log_softmax(-1)
            kl += (old.exp() * (old - new)).sum(-1).clamp(min=0) / len(places)
        said = self.answer
        probability = torch.full_like(kl, torch.nan)
        if said is not None:
            probability = logits[:, said.position].cpu().double().softmax(-1)[:, said.token_id]
        return Reading(torch.stack(values, 1), kl, probability, sites)

    @cached_property
    def answer(self) -> Readout | None:
        """The heaviest target that is a token."""
        pairs = zip(self.readouts, self.weights.tolist(), strict=True)
        tokens = [pair for pair in pairs if pair[0].token_id is not None]
        return max(tokens, key=lambda pair: pair[1])[0] if tokens else None

    def _value(
        self, out: Readout, residual: Tensor, sites: Sequence[Tensor], norms_held: bool
    ) -> Float[Tensor, " batch"]:
        """One target's value in every copy."""
        if out.feature is not None:
            x = sites[out.layer][:, out.position]
            ids = torch.full((len(x),), out.feature)
            rows, bias = self.model.transcoders.read_rows(out.layer, ids, x)
            return (rows * x).sum(1) + bias
        value = residual[:, out.position] @ out.vector
        if not norms_held:
            live = self.model.adapter.final_norm.scale(residual[:, out.position])
            value = value * (live.to(value) / self.forward.final_scale[out.position])
        return value + out.bias


@contextmanager
def _watching(module: nn.Module) -> Iterator[list[Tensor]]:
    """While inside, a list holds the last input of a module."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen[:] = [args[0] if args else kwargs["hidden_states"]]

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _clean(
    graph: Graph, model: ReplacementModel, forward: Forward
) -> tuple[Float[Tensor, " active"], Float[Tensor, " active"]]:
    """(activations, pre-activations) of the graph's features on the clean pass."""
    clean, index = Clean(model.transcoders, forward), graph.index
    activations, pre = [], []
    for layer in range(index.n_layers):
        rows = index.feature_rows(layer)
        positions, ids = index.features[rows.start : rows.stop, 1:].T
        if len(ids) and int(ids.max()) >= len(model.transcoders.layer(layer).encoder):
            raise InputError(_OTHER.format(f"L{layer}#{int(ids.max())}", model.transcoders.name))
        found = clean.activations(layer)[positions, ids]
        if bool((found == 0).any()):
            row = int((found == 0).nonzero()[0])
            name = f"L{layer}#{int(ids[row])}@{int(positions[row])}"
            raise InputError(_OTHER.format(name, model.transcoders.name))
        x = forward.mlp_inputs[layer][positions]
        vectors, bias = model.transcoders.read_rows(layer, ids, x)
        activations.append(found)
        pre.append((vectors * x).sum(1) + bias)
    return torch.cat(activations), torch.cat(pre)


_OTHER = (
    "feature {} of this graph does not fire in {}: pass the model and the transcoders that the "
    "graph was traced with"
)


def _readouts(
    graph: Graph, model: ReplacementModel, forward: Forward, targets: Sequence[Wanted] | None
) -> tuple[Readout, ...]:
    """The graph's targets on the model."""
    places = graph.provenance.settings.get("positions")
    wanted: list[Wanted] = []
    for target in graph.targets if targets is None else ():
        one = again(target)
        if one is None:
            raise InputError(
                f"the target {target.label!r} is a direction, of which the graph's file has the "
                "name alone: pass targets= as they were given to trace"
            )
        wanted.append(one)
    wanted = wanted if targets is None else list(targets)
    found = choose(model, forward, wanted, positions=-1 if places is None else places)
    said = [(out.label, out.position) for out in found]
    if said != [(target.label, target.position) for target in graph.targets]:
        raise InputError(
            f"the graph explains {', '.join(target.label for target in graph.targets)}, but the "
            f"targets given are {', '.join(label for label, _ in said)}; pass those of the trace"
        )
    return tuple(found)
