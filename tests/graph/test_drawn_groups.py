"""The supernodes that a page offers are those that the circuit finds."""

from __future__ import annotations


def test_a_drawing_offers_the_supernodes_of_its_circuit(llama):
    circuit = llama.prune()
    found = circuit.supernodes()
    drawing = circuit.drawing()
    ids = [node.id for node in drawing.nodes]
    assert found and [
        (group.name, tuple(ids[i] for i in group.members), group.share) for group in drawing.groups
    ] == [(one.name, tuple(node.id for node in one.members), one.share) for one in found[:30]]
