"""Colours and weights of the drawing, for the figure; assets/app.css holds the same for the page.

Colour is kept for the sign of an edge and for the kinds that are not features. Each colour has a
contrast of at least 4.5 to its background. Sign is never told by colour alone: negative edges are
dashed. Strength is told by five bins of rank, so that the strongest edges stand out whatever the
spread of the weights.
"""

from __future__ import annotations

PAPER = "#fbfbf9"
INK = "#1b1f24"
QUIET = "#57606a"
BAND = "rgba(27,31,36,0.035)"
RULE = "rgba(27,31,36,0.09)"
POSITIVE = "#0072B2"
NEGATIVE = "#C4500A"
FEATURE = "#5b6673"
TOKEN = "#00795a"
OUTPUT = "#9b3d78"

KIND_COLOUR = {"feature": FEATURE, "error": QUIET, "embedding": TOKEN, "logit": OUTPUT}
KIND_SYMBOL = {
    "feature": "circle",
    "error": "diamond-open",
    "embedding": "square",
    "logit": "triangle-up",
}
KIND_NAME = {"feature": "feature", "error": "error", "embedding": "token", "logit": "output"}
KIND_SIZE = {
    "feature": (6.0, 14.0),
    "error": (6.0, 11.0),
    "embedding": (6.0, 12.0),
    "logit": (8.0, 15.0),
}

BIN_ENDS = (0.015, 0.06, 0.18, 0.45, 1.0)
"""Edges by rank: the strongest 1.5 %, the next 4.5 %, and so on."""

BIN_WIDTH = (2.8, 1.7, 1.2, 0.9, 0.7)
BIN_OPACITY = (0.85, 0.55, 0.34, 0.2, 0.11)


def bin_of(rank: int, count: int) -> int:
    """Bin (0 is strongest) of the edge of this rank among `count`."""
    share = (rank + 1) / count
    return next((b for b, end in enumerate(BIN_ENDS) if share <= end), len(BIN_ENDS) - 1)


def marker_size(kind: str, influence: float, largest: float) -> float:
    """Diameter in pixels; the area grows with the share of the largest influence of its kind."""
    low, high = KIND_SIZE[kind]
    share = max(influence, 0.0) / largest if largest > 0 else 0.0
    return low + (high - low) * share**0.5
