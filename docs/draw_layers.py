"""Draw docs/images/layers.svg from the import-linter contract in pyproject.toml.

Run by `make docs`; a test checks that the drawing is the contract's. Each box says what the module
is by the first words of its docstring.
"""

from __future__ import annotations

import ast
import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "layers.svg"
WIDTH, ROW, GAP, LEFT, TOP = 860, 46, 8, 16, 10
STYLE = """
  .band { fill: #7f8c8d; opacity: .10 }
  .box { fill: #0072b2; fill-opacity: .12; stroke: #0072b2 }
  text { font: 13px ui-sans-serif, system-ui, sans-serif; fill: #1c1e21 }
  .say { font-size: 10.5px; fill: #50565c }
  @media (prefers-color-scheme: dark) {
    .box { fill: #56b4e9; fill-opacity: .14; stroke: #56b4e9 }
    text { fill: #e8eaed } .say { fill: #a5acb3 }
  }
"""


def layers() -> list[list[str]]:
    """Modules by layer, highest first."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^layers = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    assert listed, "pyproject.toml has no layers contract"
    return [re.findall(r"\w+", layer) for layer in ast.literal_eval(listed[1])]


def saying(module: str) -> str:
    """The first clause of a module's docstring, "" if it is not there yet."""
    package = ROOT / "circuit_tracer" / module
    path = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    if not path.exists():
        return ""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(doc.split("\n\n")[0].split()).replace("`", "")
    sentence = re.sub(r"^(THE MATHS \(\d\)|[\w ]{1,14}): ", "", sentence)
    return re.split(r"(?<=[a-z\d)])[.:](?:\s|$)", sentence)[0]


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip(" ,;") + "…"


def drawing() -> str:
    """The picture, as SVG."""
    rows = layers()
    height = TOP * 2 + len(rows) * (ROW + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Layers of circuit_tracer: a module imports only what is drawn below it</title>",
        f"<style>{STYLE}</style>",
    ]
    for number, row in enumerate(rows):
        top = TOP + number * (ROW + GAP)
        space = WIDTH - LEFT - 16
        parts.append(f'<rect class="band" x="{LEFT - 6}" y="{top}" width="{space + 12}" '
                     f'height="{ROW}" rx="6"/>')  # fmt: skip
        width = (space - GAP * (len(row) - 1)) / len(row)
        for place, module in enumerate(row):
            parts.append(box(module, LEFT + place * (width + GAP), top + 4, width))
    return "\n".join([*parts, "</svg>", ""])


def box(module: str, left: float, top: float, width: float) -> str:
    said = escape(shortened(saying(module), int(width / 6.3)))
    return (
        f'<rect class="box" x="{left:.1f}" y="{top}" '
        f'width="{width:.1f}" height="{ROW - 8}" rx="5"/>'
        f'<text x="{left + 10:.1f}" y="{top + 16}">{module}</text>'
        f'<text class="say" x="{left + 10:.1f}" y="{top + 31}">{said}</text>'
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(drawing(), encoding="utf-8")
