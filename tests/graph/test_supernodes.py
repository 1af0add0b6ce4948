"""Supernodes: a planted partition comes back, whatever the order, the seed or the process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote, Provenance
from circuit_tracer.influence import Scores
from circuit_tracer.nodes import Node
from tests.house.repository import ROOT

LAYERS = 4


def planted(seed=0, noise=0.05, sizes=(3, 2, 4), notes=None, positions=(1, 1, 1)):
    """(circuit, groups of ids): members of a group read the same words and write to the same
    targets with the same strengths, up to noise; layers alternate between 1 and 2."""
    draw = torch.Generator().manual_seed(seed)
    words = [Node(f"E_{k}_{k}", "embedding", -1, k, k, f"w{k}", label=f"w{k}") for k in range(6)]
    logits = [
        Node(f"5_{k}_5", "logit", LAYERS, 5, k, f"out{k}", label=f"out{k}", probability=0.2)
        for k in range(4)
    ]
    features, edges, groups = [], [], []
    for number, size in enumerate(sizes):
        # Of length one, so that the noise never drowns a profile.
        reads, writes = (
            torch.nn.functional.normalize(torch.randn(n, generator=draw), dim=0) for n in (6, 4)
        )
        group = []
        for member in range(size):
            place, layer = 10 * number + member, 1 + member % 2
            node = Node(
                f"{layer}_{place}_{positions[number]}",
                "feature",
                layer,
                positions[number],
                place,
                f"w{positions[number]}",
                influence=0.1 + 0.01 * member,
                label=f"L{layer}#{place}",
            )
            group.append(node.id)
            features.append(node)
            strength = 0.5 + torch.rand(1, generator=draw)
            for ends, values in ((words, reads), (logits, writes)):
                noisy = strength * values + noise * torch.randn(len(values), generator=draw)
                for end, weight in zip(ends, noisy.tolist(), strict=True):
                    pair = (end.id, node.id) if ends is words else (node.id, end.id)
                    edges.append((*pair, weight))
        groups.append(frozenset(group))
    return made([*words, *features, *logits], edges, notes or {}), set(groups)


def made(nodes, edges, notes):
    place = {node.id: number for number, node in enumerate(nodes)}
    edges = sorted(edges, key=lambda edge: (place[edge[1]], place[edge[0]]))
    sources, targets = (torch.tensor([place[edge[k]] for edge in edges]) for k in (0, 1))
    weights = torch.tensor([weight for _, _, weight in edges], dtype=torch.float64)
    sums = torch.zeros(len(nodes), dtype=torch.float64).index_add_(0, targets, weights.abs())
    scores = Scores(1.0, 1.0, 1.0, (0.0,) * LAYERS, 0.0, 0.0, 2.0)
    return Circuit(
        nodes=tuple(nodes),
        sources=sources,
        targets=targets,
        weights=weights,
        shares=weights.abs() / sums[targets],
        tokens=tuple(f"w{k}" for k in range(6)),
        provenance=Provenance("planted"),
        scores=scores,
        graph_scores=scores,
        closure_error=0.0,
        target_weights={node.id: 0.2 for node in nodes if node.kind == "logit"},
        thresholds={},
        n_all_nodes=len(nodes),
        n_all_edges=len(edges),
        n_layers=LAYERS,
        notes=notes,
    )


def ids(found):
    return {frozenset(node.id for node in one.members) for one in found}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_a_planted_partition_is_found(seed):
    # Random profiles of ten numbers can be alike by chance; not more than 0.9 in both.
    circuit, groups = planted(seed, noise=0.003)
    found = circuit.supernodes(similarity=0.95)
    assert ids(found) == groups
    assert all(one.cohesion > 0.95 for one in found)
    shares = [one.share for one in found]
    assert shares == sorted(shares, reverse=True)
    for one in found:
        assert one.share == pytest.approx(circuit.influence_of(one.members))
    merged = circuit.merged(found)
    assert len(merged.nodes) == 6 + len(groups) + 4
    assert merged.flow() == pytest.approx(circuit.flow())


def test_the_order_of_nodes_changes_no_group():
    circuit, groups = planted(3)
    turned = list(circuit.nodes[:6]) + list(circuit.nodes[6:-4])[::-1] + list(circuit.nodes[-4:])
    edges = [(edge.source.id, edge.target.id, edge.weight) for edge in circuit.edges]
    other = made(turned, edges, {})
    assert ids(other.supernodes(similarity=0.95)) == ids(circuit.supernodes(similarity=0.95))
    assert ids(circuit.supernodes(similarity=0.95)) == groups


@pytest.mark.slow
def test_every_process_finds_the_same():
    code = (
        "from tests.graph.test_supernodes import planted\n"
        "print(planted(5, noise=0.8, sizes=(6, 6, 6))[0].supernodes(similarity=0.4))"
    )
    said = set()
    for seed in ("0", "1"):
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(ran.stdout)
    assert len(said) == 1 and "Supernode(name=" in said.pop()


def test_positions_and_layers_keep_features_apart():
    apart, groups = planted(1, noise=0.0, sizes=(2, 2), positions=(1, 2, 0))
    assert ids(apart.supernodes(similarity=-1.0)) == groups
    everywhere = apart.supernodes(similarity=-1.0, same_position=False)
    assert ids(everywhere) == {frozenset().union(*groups)}
    for one in apart.supernodes(similarity=-1.0, band=1, same_position=False):
        assert len({node.layer for node in one.members}) == 1


def test_groups_never_make_a_loop(toy):
    for seed in range(8):
        circuit = toy(seed, density=0.7, n_layers=4, n_features=30).prune(1.0, 1.0)
        found = circuit.supernodes(similarity=-1.0, band=4, same_position=False)
        merged = circuit.merged(found)
        assert merged.flow() == pytest.approx(circuit.flow())
        for one in found:
            assert one.share == pytest.approx(circuit.influence_of(one.members))


def test_with_the_rest_merged_into_errors_less_is_explained(toy):
    circuit = toy(2, density=1.0, last_only=True, n_features=30).prune(1.0, 1.0)
    found = circuit.supernodes(similarity=0.3)[:2]
    small = circuit.merged(found, rest=False)
    assert len(small.find("feature")) == 2
    assert small.scores.replacement == pytest.approx(small.flow())
    assert small.scores.replacement < circuit.scores.replacement
    assert small.scores.pruned_share > 0
    assert circuit.merged(found).scores == circuit.scores


def test_supernodes_can_be_edited_and_bear_one_name_each():
    circuit, _ = planted(0, noise=0.0)
    first, second, *_ = circuit.supernodes(similarity=0.9)
    smaller = replace(first, name="mine", members=first.members[:1])
    merged = circuit.merged([smaller, second])
    assert merged.members["mine"] == first.members[:1]
    with pytest.raises(InputError, match="two supernodes have one name"):
        circuit.merged([first, replace(second, name=first.name)])


def test_names_come_from_labels_then_promoted_tokens_then_places():
    notes = {
        (1, 0): FeatureNote("Texas"),
        (1, 10): FeatureNote(promoted=((" big", 2.0), (" huge", 1.0))),
        (2, 11): FeatureNote(promoted=((" huge", 2.0),)),
    }
    circuit, _ = planted(0, noise=0.0, notes=notes)
    names = {one.name for one in replace(circuit, n_layers=3).supernodes(similarity=0.9)}
    assert names == {"Texas", 'says "huge" L1–2@1', 'at "w1" L1–2@1'}
    unknown, _ = planted(0, noise=0.0)
    names = {one.name for one in unknown.supernodes(similarity=0.9)}
    assert names == {'at "w1" L1–2@1', 'at "w1" L1–2@1 (2)', 'at "w1" L1–2@1 (3)'}


def test_single_features_are_left_out_unless_wanted():
    circuit, _ = planted(0, noise=0.0, sizes=(1, 2, 1))
    assert [len(one.members) for one in circuit.supernodes(similarity=0.9)] == [2]
    every = circuit.supernodes(similarity=0.9, min_size=1)
    assert sorted(len(one.members) for one in every) == [1, 1, 2]
    assert {one.cohesion for one in every if len(one.members) == 1} == {1.0}


class Decoders:
    """Transcoders of which only decoder rows are asked."""

    n_layers = LAYERS

    def __init__(self, rows):
        self.rows = rows

    def layer(self, number):
        return self

    @property
    def encoder(self):
        return self.rows

    @property
    def decoders(self):
        return (self.rows,)

    def decoder_rows(self, layer, written, features):
        return self.rows[features]


class Model:
    def __init__(self, rows):
        self.transcoders = Decoders(rows)

    def __repr__(self):
        return "the model"


def test_decoders_tell_apart_what_edges_do_not():
    circuit, groups = planted(0, noise=0.0, sizes=(4,))
    rows = torch.zeros(50, 3)
    rows[:2, 0] = rows[2:, 1] = 1.0
    assert ids(circuit.supernodes(similarity=0.9)) == groups
    found = circuit.supernodes(Model(rows), similarity=0.9)
    assert ids(found) == {frozenset({"1_0_1", "2_1_1"}), frozenset({"1_2_1", "2_3_1"})}
    with pytest.raises(InputError, match="has 2 features there: give the model that was traced"):
        circuit.supernodes(Model(rows[:2]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"similarity": 1.5}, "similarity=1.5 is not a cosine"),
        ({"band": 0}, "band=0"),
        ({"min_size": 0}, "min_size=0"),
    ],
)
def test_impossible_numbers_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        planted()[0].supernodes(**wrong)
