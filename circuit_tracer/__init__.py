"""Trace what a language model computes: attribution graphs, exact, from one command, offline.

    import circuit_tracer as ct

    model = ct.load()                                       # the bundled model, no network
    graph = ct.trace("The opposite of small is", model)
    circuit = graph.prune()
    print(circuit.summary())
    circuit.save_html("small.html")

Importing this is cheap: torch and transformers are loaded when a name that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuit_tracer.changes import Clamp, Scale
    from circuit_tracer.circuit import Circuit
    from circuit_tracer.comparing.compare import compare
    from circuit_tracer.comparing.comparison import Comparison
    from circuit_tracer.errors import CircuitTracerError
    from circuit_tracer.graph import Graph
    from circuit_tracer.loading import load
    from circuit_tracer.nodes import Node
    from circuit_tracer.replacement import ReplacementModel
    from circuit_tracer.targets import At, Difference, Direction
    from circuit_tracer.tracing import trace
    from circuit_tracer.verify.measure import faithfulness

_HOMES = {
    "At": "targets",
    "Circuit": "circuit",
    "CircuitTracerError": "errors",
    "Clamp": "changes",
    "Comparison": "comparing.comparison",
    "Difference": "targets",
    "Direction": "targets",
    "Graph": "graph",
    "Node": "nodes",
    "ReplacementModel": "replacement",
    "Scale": "changes",
    "compare": "comparing.compare",
    "faithfulness": "verify.measure",
    "load": "loading",
    "trace": "tracing",
}

__version__ = "0.1.0"
__all__ = [
    "At",
    "Circuit",
    "CircuitTracerError",
    "Clamp",
    "Comparison",
    "Difference",
    "Direction",
    "Graph",
    "Node",
    "ReplacementModel",
    "Scale",
    "compare",
    "faithfulness",
    "load",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
