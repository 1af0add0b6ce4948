"""Trace a prompt on the bundled model and save a page: the shortest whole program."""

import circuit_tracer as ct

graph = ct.trace("The opposite of small is", ct.load())
print([(target.label, round(target.probability, 3)) for target in graph.targets])
print(f"every row adds up to within {graph.closure_error:.0e}")

circuit = graph.prune()
print(circuit.summary())
circuit.save_html("small.html")
