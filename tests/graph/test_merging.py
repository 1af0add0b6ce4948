"""Sub-circuits, merged nodes and their scores."""

from __future__ import annotations

import random
from dataclasses import astuple

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.nodes import Node

seeds = st.integers(0, 10_000)


def whole(toy, seed=0, **more):
    return toy(seed, **{"density": 1.0, "last_only": True, "n_features": 14, **more}).prune(
        1.0, 1.0
    )


def in_layers(circuit, seed, count=2):
    """Random groups of features of one layer each: these can never make a loop."""
    chosen, groups = random.Random(seed), {}
    for layer in sorted({node.layer for node in circuit.find("feature")}):
        nodes = circuit.find("feature", layer=layer)
        chosen.shuffle(nodes)
        for number in range(count):
            if part := nodes[number::count]:
                groups[f"layer {layer}, group {number}"] = part
    return groups


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([0.5, 0.8, 1.0]))
def test_scores_of_a_subset_are_those_of_a_graph_pruned_to_it(toy, seed, share):
    """Pruning merges what it drops into the errors; so does a subset, also step by step."""
    graph = toy(seed, density=1.0, last_only=True)
    pruned, full = graph.prune(share, 1.0), graph.prune(1.0, 1.0)
    names = [node.id for node in pruned.nodes]
    part = full.subset(names, ends=False)
    # Edge for edge the same where edge pruning drops nothing.
    assert [node.id for node in part.nodes] == names
    assert len(part.weights) == len(pruned.weights)
    for circuit in (part, pruned.subset(names)):
        scores, wanted = circuit.scores, pruned.scores
        assert scores.error_share_by_layer == ()
        for name in ("replacement", "completeness", "completeness_ct", "mean_path_length"):
            assert getattr(scores, name) == pytest.approx(getattr(wanted, name))
        assert scores.pruned_share == pytest.approx(wanted.pruned_share, abs=1e-12)


def test_a_subset_keeps_words_and_targets_unless_told_not_to(toy):
    circuit = whole(toy)
    feature = circuit.find("feature")[0]
    assert {node.kind for node in circuit.subset(feature).nodes} == {
        "feature",
        "embedding",
        "logit",
    }
    assert circuit.subset([feature], ends=False).nodes == (feature,)
    assert circuit.subset(feature).summary()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_merging_moves_no_influence(toy, seed):
    circuit = whole(toy, seed)
    merged = circuit.merge(in_layers(circuit, seed))
    assert merged.flow() == pytest.approx(circuit.flow())
    assert merged.scores == circuit.scores
    for node in merged.nodes:
        if node.kind in ("embedding", "error"):
            assert merged.flow(node) == pytest.approx(circuit.flow(node.id))
        elif node.kind == "feature":
            members = merged.members[node.id]
            assert merged.influence_of(node) == pytest.approx(circuit.influence_of(members))
            assert node.influence == pytest.approx(sum(member.influence for member in members))
    shares = torch.zeros(len(merged.nodes), dtype=torch.float64)
    shares.index_add_(0, merged.targets, merged.shares)
    for node, total in zip(merged.nodes, shares.tolist(), strict=True):
        if node.kind == "logit":
            assert total == pytest.approx(1.0)
        assert total <= 1 + 1e-12


def test_edges_are_summed(toy):
    circuit = whole(toy)
    groups = in_layers(circuit, 0)
    merged = circuit.merge(groups)
    owner = {node.id: name for name, nodes in groups.items() for node in nodes}
    wanted = {}
    for edge in circuit.edges:
        ends = tuple(owner.get(node.id, node.id) for node in (edge.source, edge.target))
        wanted[ends] = wanted.get(ends, 0.0) + edge.weight
    found = {(edge.source.id, edge.target.id): edge.weight for edge in merged.edges}
    assert found == pytest.approx(wanted)
    assert [edge.target.id for edge in merged.edges] == sorted(
        (edge.target.id for edge in merged.edges), key=[n.id for n in merged.nodes].index
    )


def test_edges_within_a_group_are_inside_it(toy):
    """Layers 0 and 1 merged whole: what passes both is counted once."""
    circuit = whole(toy)
    both = circuit.find("feature", layer=[0, 1])
    merged = circuit.merge({"low": both})
    assert networkx.is_directed_acyclic_graph(merged.to_networkx())
    assert merged.flow() == pytest.approx(circuit.flow())
    assert merged.influence_of("low") == pytest.approx(circuit.influence_of(both))
    weight = sum(circuit.target_weights.values())
    assert merged.node("low").influence == pytest.approx(circuit.influence_of(both) * weight)


def test_words_and_targets_can_be_merged_and_all_of_it_again(toy):
    circuit = whole(toy)
    words, logits = circuit.find("embedding"), circuit.find("logit")
    merged = circuit.merge({"prompt": words[:2], "answers": logits[:2]})
    assert merged.node("prompt").kind == "embedding"
    answers = merged.node("answers")
    assert answers.probability == pytest.approx(sum(node.probability for node in logits[:2]))
    assert merged.target_weights["answers"] == pytest.approx(
        sum(circuit.target_weights[node.id] for node in logits[:2])
    )
    assert merged.flow() == pytest.approx(circuit.flow())
    assert merged.paths(k=1) and merged.summary() and merged.drawing()
    again = merged.merge({"words": ["prompt", words[2].id]})
    assert {node.id for node in again.members["words"]} == {node.id for node in words[:3]}
    assert set(again.members) == {"words", "answers"}


def test_what_lies_between_can_be_merged(toy):
    circuit = whole(toy)
    word = circuit.find("embedding", position=0)[0]
    feature = max(circuit.find("feature"), key=lambda node: (node.layer, node.position))
    inside = circuit.between(word, feature)
    lower = [node for node in inside.find("feature", layer=0)]
    if lower:
        merged = inside.merge({"lower": lower})
        assert merged.flow() == pytest.approx(inside.flow())


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"x": []}, "no node was given"),
        ({"x": ["tok0"], "y": ["tok0"]}, "is in both 'x' and 'y'"),
        ({"E_7_0": ["tok1"]}, "there is a node 'E_7_0' already"),
        ({" ": ["tok1"]}, "needs a name"),
        ({"x": ["tok0", "error 0@0"]}, "would mix embedding and error nodes"),
        ({"x": ["nothing"]}, "there is no node 'nothing'"),
    ],
)
def test_impossible_groups_are_refused(toy, groups, message):
    with pytest.raises(InputError, match=message):
        whole(toy).merge(groups)


def test_a_group_that_reads_itself_through_another_is_refused_by_name(toy):
    circuit = whole(toy, n_positions=1)
    low, middle, high = (circuit.find("feature", layer=layer) for layer in range(3))
    with pytest.raises(InputError, match="'ends' would both lead to and come from") as refused:
        circuit.merge({"ends": [low[0], high[0]]})
    assert any(node.id in str(refused.value) for node in middle)
    assert circuit.merge({"all": [low[0], *middle, high[0]]}).members["all"]


def test_renaming_changes_labels_only(toy):
    circuit = whole(toy)
    node = circuit.find("feature")[0]
    renamed = circuit.rename({node.id: "Texas"})
    assert renamed.node("Texas").id == node.id
    others = [(a, b) for a, b in zip(circuit.nodes, renamed.nodes, strict=True) if a != b]
    assert len(others) == 1
    assert astuple(others[0][1]) == astuple(
        Node(**{**{f: getattr(node, f) for f in Node.__dataclass_fields__}, "label": "Texas"})
    )
    assert circuit.node(node.id).label != "Texas"
