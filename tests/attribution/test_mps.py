"""Everything that runs a model does so where there is no float64, with the numbers of a CPU."""

from __future__ import annotations

from dataclasses import replace

import mps
import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.agreement.measure import measure
from circuit_tracer.attention import heads, qk
from circuit_tracer.attention.carried import edge_heads
from circuit_tracer.attention.looks import edge_looks
from circuit_tracer.comparing.activity import firing
from circuit_tracer.comparing.matching import directions
from circuit_tracer.comparing.swap import swap
from circuit_tracer.error_nodes import explain_error
from circuit_tracer.features import firing as fired
from circuit_tracer.global_weights import coactivation, global_weights
from circuit_tracer.neurons import neurons
from circuit_tracer.question import Question
from circuit_tracer.tracing import trace_abreast

OTHER = [2, 4, 7, 31, 30, 8]
TEXTS = [tiny.PROMPT, OTHER]


@pytest.fixture(scope="module", autouse=True)
def there():
    """What torch says of MPS only where there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.mps, "recommended_max_memory", lambda: 2**33)
        patch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
        patch.setattr(torch.mps, "synchronize", lambda: None)
        yield


@pytest.fixture(scope="module")
def both():
    """The same model on the CPU and there, and graphs of it."""
    sets = {"kind": "clt", "activation": "jump_relu"}
    models = tiny.replacement("gemma2", torch.float32, **sets), mps.replacement("gemma2", **sets)
    graphs = [ct.trace(ids, models[0]) for ids in TEXTS]
    return models, *graphs


def told(graph):
    return graph.dense().tolist(), graph.closure_error, graph.scores


def scores_behind_a_page(model, graph, _):
    circuit = graph.prune()
    circuit = replace(circuit, heads=edge_heads(model, graph, circuit))
    found = edge_looks(model, graph, circuit, most=3)
    assert len(found) == 3
    return found


def edge_over_heads(model, graph, _):
    circuit = graph.prune()
    ends = (int(ends[0]) for ends in (circuit.sources, circuit.targets))
    return heads(model, graph, *(circuit.nodes[end].id for end in ends)).by_head.tolist()


def of_neurons(model, _, other):
    own = ct.ReplacementModel(model.adapter, model.tokenizer, neurons(model.adapter, "neurons:4"))
    graph = ct.trace(tiny.PROMPT, own)
    groups = graph.prune().supernodes(model=own)
    return groups, directions(own, 1, torch.arange(3)).tolist(), measure(own, TEXTS)


def intervened(model, graph, _):
    layer, position, feature = graph.index.features[0].tolist()
    change = {(layer, position, feature): ct.Scale(0)}
    return [model.intervene(tiny.PROMPT, change, mode).table(2) for mode in ("direct", "free")]


WORK = {
    "a graph": lambda m, g, o: told(ct.trace(tiny.PROMPT, m)),
    "a graph with fewer features": lambda m, g, o: told(ct.trace(OTHER, m, max_features=9)),
    "a graph with fewer edges": lambda m, g, o: ct.trace(OTHER, m, keep_edges=0.9).dense().tolist(),
    "two graphs at once": lambda m, g, o: [
        told(graph) for graph in trace_abreast([Question(ids) for ids in TEXTS], m)
    ],
    "QK attribution": lambda m, g, o: qk(m, g, 1, 0, 5, 2).to_plain(),
    "QK attribution of a page": scores_behind_a_page,
    "head loadings": edge_over_heads,
    "interventions": intervened,
    "an error node": lambda m, g, o: explain_error(
        g, m, next(node for node in g.prune().nodes if node.kind == "error")
    ),
    "agreement": lambda m, g, o: measure(m, TEXTS),
    "matching by decoders": lambda m, g, o: (
        ct.compare({"a": g, "b": o}, model=m, match="decoder").rows
    ),
    "supernodes": lambda m, g, o: g.prune().supernodes(model=m),
    "a swap": lambda m, g, o: swap(g, o, 7, m, nodes=1.0, ends=[None]),
    "a corpus": lambda m, g, o: [values.tolist() for _, values in firing(m)("w4 w5 w9")],
    "feature examples": lambda m, g, o: [
        found.tolist() for found in fired.firing(m, torch.tensor(OTHER))
    ],
    "global weights": lambda m, g, o: global_weights(
        m, (1, 3), seen=coactivation(m, (1, 3), TEXTS)
    ),
    "neurons": of_neurons,
}


@pytest.mark.parametrize("what", WORK)
def test_what_runs_a_model_needs_no_float64_on_its_device(both, what):
    (here, there), *graphs = both
    wanted = WORK[what](here, *graphs)
    with mps.Mps():
        found = WORK[what](there, *graphs)
    assert str(found) == str(wanted)


def test_the_device_that_stands_in_refuses_what_mps_refuses():
    with mps.Mps():
        x = torch.ones(3, device="mps")
        assert x.device.type == "mps" and (x * 2).device.type == "mps"
        assert x.cpu().double().device.type == "cpu"
        with pytest.raises(TypeError, match="no float64"):
            x.double()
        with pytest.raises(TypeError, match="no float64"):
            x.to(torch.ones(3, dtype=torch.float64))
        with pytest.raises(TypeError, match="numpy does not see"):
            x.numpy()
        with pytest.raises(RuntimeError, match="on mps and on cpu"):
            x + torch.ones(3)
