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
    from circuit_tracer.circuit import Circuit
    from circuit_tracer.errors import CircuitTracerError
    from circuit_tracer.graph import Graph
    from circuit_tracer.loading import load
    from circuit_tracer.nodes import Node
    from circuit_tracer.replacement import ReplacementModel
    from circuit_tracer.targets import Difference
    from circuit_tracer.tracing import trace

_HOMES = {
    "Circuit": "circuit",
    "CircuitTracerError": "errors",
    "Difference": "targets",
    "Graph": "graph",
    "Node": "nodes",
    "ReplacementModel": "replacement",
    "load": "loading",
    "trace": "tracing",
}

__version__ = "0.1.0"
__all__ = [
    "Circuit",
    "CircuitTracerError",
    "Difference",
    "Graph",
    "Node",
    "ReplacementModel",
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
