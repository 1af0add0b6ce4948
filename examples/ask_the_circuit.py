"""Ask a circuit how Dallas led to Austin: paths, what they pass through, and what else mattered."""

import circuit_tracer as ct

graph = ct.trace("The capital of the state containing Dallas is", ct.load())
circuit = graph.prune(max_nodes=80)

(dallas,) = circuit.find(kind="embedding", token="Dallas")
austin = circuit.find(kind="logit")[0]

print(f"how {dallas.label} led to {austin.label}:")
for path in circuit.paths(source=dallas, target=austin, k=5):
    print("  ", path)

print("what most of it passes through:")
for node, share in circuit.bottlenecks(k=5):
    note = circuit.notes.get((node.layer, node.feature))
    says = ", ".join(token for token, _ in note.promoted[:3]) if note else ""
    print(f"   {node.id}  {100 * share:.0f} %  promotes {says}")

print("what feeds the strongest of them:")
strongest = circuit.bottlenecks(k=1)[0][0]
for edge in circuit.inputs(strongest, k=5):
    print(f"   {edge.source.label}  {100 * edge.share:.1f} %")
