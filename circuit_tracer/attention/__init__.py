"""Attention made visible: which heads carry an edge, and why a head looks where it looks.

Edges run through frozen attention patterns. `heads` splits one edge over the heads that carry it;
`qk` splits the score by which a head chose a position over what was written at both ends. Both are
exact: parts add up to the edge, and to the score, to rounding. docs/attention.md has the equations.
"""

from circuit_tracer.attention.loadings import HeadLoadings, PathLoadings, heads, path_heads
from circuit_tracer.attention.scores import PARTS, QK, Pairs, Term, qk

__all__ = [
    "PARTS",
    "QK",
    "HeadLoadings",
    "Pairs",
    "PathLoadings",
    "Term",
    "heads",
    "path_heads",
    "qk",
]
