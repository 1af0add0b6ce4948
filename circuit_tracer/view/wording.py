"""How tokens, labels and numbers are worded, wherever Python writes them.

Tokens are arbitrary text: blanks, line breaks, markup, right-to-left scripts, halves of
characters. Here they become something that can be seen, and something that plotly, which reads a
little HTML in every string, shows literally. assets/data.js words them alike in the page.
"""

from __future__ import annotations

import html

from circuit_tracer.view.drawing import DrawnNode

_VISIBLE = {
    "\n": "⏎",
    "\r": "␍",
    "\t": "⇥",
    "\u00a0": "⍽",
    "\u2028": "␤",
    "\u2029": "␤",
    "\u200b": "∅",
    "\ufeff": "∅",
}


def visible(token: str) -> str:
    """The token without its leading blank, with what cannot be seen made visible."""
    text = "".join(_VISIBLE.get(character, character) for character in token)
    if not text.strip(" "):
        return "␣" * max(len(text), 1) if text else "∅"
    return text.strip(" ")


def shortened(text: str, most: int = 12) -> str:
    """`text` in at most `most` characters, the last one an ellipsis where some are missing."""
    return text if len(text) <= most else text[: most - 1] + "…"


def literal(text: str) -> str:
    """`text` so that plotly shows it as it is: no tag, link or entity in it is interpreted."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return html.escape(text, quote=False)


def title(node: DrawnNode) -> str:
    """What the node is called: its label, else what it says or stands for."""
    plain = node.kind == "logit" and node.label == f'Output "{node.token}"'
    if node.label and not plain:
        return node.label
    if node.kind == "logit":
        return f"Output “{visible(node.token)}”"
    if node.kind == "embedding":
        return f"Token “{visible(node.token)}”"
    if node.kind == "error":
        return "Error"
    if node.promoted:
        return "says " + ", ".join(f"“{visible(token)}”" for token, _ in node.promoted[:2])
    return f"#{node.feature}"


def where(node: DrawnNode, n_layers: int, tokens: tuple[str, ...]) -> str:
    """Layer and token of a node, e.g. ``L16 · “petit”``."""
    layer = {-1: "Emb", n_layers: "Out"}.get(node.layer, f"L{node.layer}")
    return f"{layer} · “{visible(tokens[node.position])}”"


def number(value: float) -> str:
    """Three significant digits with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")
