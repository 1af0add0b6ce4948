"""The scores behind the heads of a page are those of `qk`, taken apart together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny

import circuit_tracer as ct
from circuit_tracer.attention import looks, qk
from circuit_tracer.attention.looks import edge_looks
from circuit_tracer.errors import InputError
from circuit_tracer.tracing import page_circuit

CLOSES = 1e-10


def traced(family="llama"):
    model = tiny.replacement(family)
    graph = ct.trace(tiny.PROMPT, model)
    return model, graph, page_circuit(graph, model, heads=10**9, qk=0)


# Grouped heads, norms on queries, soft cap, learned positions, a parallel block.
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "neox"])
def test_every_score_is_that_of_qk(family):
    model, graph, circuit = traced(family)
    found = edge_looks(model, graph, circuit, 12)
    assert len(found) == 12
    for look, score in found.items():
        alone = qk(model, graph, *look)
        assert score.score == pytest.approx(alone.score, abs=CLOSES)
        assert score.pattern == pytest.approx(alone.pattern, abs=CLOSES)
        sides = (
            (score.query_side, score.query_kinds, score.query_rest, alone.query_side),
            (score.key_side, score.key_kinds, score.key_rest, alone.key_side),
        )
        for strongest, kinds, rest, terms in sides:
            assert [name for name, _ in strongest] == [term.id for term in terms[: looks.LISTED]]
            assert [part for _, part in strongest] == pytest.approx(
                [term.value for term in terms[: looks.LISTED]], abs=CLOSES
            )
            assert len(strongest) + rest == len(terms)
            assert sum(kinds.values()) == pytest.approx(score.score, abs=CLOSES)
            for kind, part in kinds.items():
                of_kind = [term.value for term in terms if term.kind == kind]
                assert of_kind and sum(of_kind) == pytest.approx(part, abs=CLOSES)


def test_every_listed_head_has_a_score_where_all_are_asked_for():
    model, graph, circuit = traced()
    at = {node.id: node.position for node in circuit.nodes}
    listed = {
        (layer, head, at[target], key)
        for (_, target), split in circuit.heads.items()
        for layer, head, _, key in split.heads
    }
    assert set(edge_looks(model, graph, circuit, 10**9)) == listed
    assert set(page_circuit(graph, model, 10**9, 10**9).drawing().looks) == listed


def test_little_work_takes_the_first_of_them(monkeypatch):
    model, graph, circuit = traced()
    local = model.localise(model.run(tiny.PROMPT))
    ranked = looks._chosen(local, circuit, 10**9)
    least = sum(looks._work(local, ranked[0][0], place) for place in ranked[0][2:])
    monkeypatch.setitem(looks.MOST_WORK, "cpu", least)
    assert list(edge_looks(model, graph, circuit)) == ranked[:1]


def test_none_are_asked_for_and_fewer_than_none_are_refused():
    model, graph, circuit = traced()
    assert edge_looks(model, graph, circuit, 0) == {}
    assert edge_looks(model, graph, replace(circuit, heads={})) == {}
    with pytest.raises(InputError, match="-1 heads"):
        edge_looks(model, graph, circuit, -1)
