"""The tables of docs/scale.md: sizes and operation counts, from shapes alone. Nothing is measured.

    python docs/scale.py                                       print the tables
    python docs/scale.py --page                                put them into docs/scale.md
    python docs/scale.py config.json --features 16384 --l0 60  the same for a model of your own

`config.json` is that of a Hugging Face folder. Counts are of numbers, bytes and operations (a
multiplication and an addition are two). A time is operations over `RATE`, or bytes over `LINK`:
both are assumptions, to be replaced by what your machine reaches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("scale.md")
START, END = "<!-- tables: made by docs/scale.py -->", "<!-- end of tables -->"

RATE = 1e14  # operations a second of one accelerator, assumed
LINK = 25e9  # bytes a second from main memory to it, assumed
COUNTING = 0.8e-6  # seconds of a CPU core for every place where a feature fires, measured here
TOKENS, ROWS, CORPUS, PROMPTS = 64, 10_000, 1e9, 1000
LENGTHS = (16, 64, 256, 1024, 2048)
KEPT = 0.5  # share of the edges that hold 95 % of a row, measured on the bundled model
TARGETS = 10
ELEMENTS = 2**28  # of a gradient on its way down on a GPU, and of two more tensors like it
PIECE = 256  # tokens that go through the model at once in a feature build
BINS, ENTRY, EXAMPLES = 64, 24, 32  # of a feature's tally: bins, bytes an example, examples


@dataclass(frozen=True)
class Shape:
    """A model and a set of transcoders: layers, width, heads, MLP, words, features, L0 a layer."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    words: int
    features: int
    l0: int
    tied: bool = False

    @property
    def parameters(self) -> float:
        block = self.width * (2 * self.head * (self.heads + self.kv_heads) + 3 * self.mlp)
        return float(self.layers * block + (2 - self.tied) * self.words * self.width)

    @property
    def all_features(self) -> int:
        return self.layers * self.features

    @property
    def encoders(self) -> float:
        return float(self.all_features * self.width)

    @property
    def cross_layer(self) -> float:
        """Numbers of a cross-layer set; a per-layer one has twice its encoders."""
        return self.encoders * (1 + (self.layers + 1) / 2)

    def active(self, tokens: int) -> int:
        """Features of a graph: the first token's are ignored."""
        return self.layers * self.l0 * (tokens - 1)

    def forward(self, tokens: float) -> float:
        """Operations of the model and the encoders."""
        return 2 * (self.parameters + self.encoders) * tokens

    def sweep(self, tokens: int, rows: int | None = None) -> tuple[float, float]:
        """(operations, edges) of so many feature rows (of all where None) and `TARGETS` targets.

        With L0 active features everywhere, rows of average length, and every target carried down
        alone. Where what sources write fits, they are carried up to meet the targets, and there are
        fewer operations (`circuit_tracer.carried`).
        """
        operations = edges = 0.0
        for place in range(1, tokens):
            for layer in range(self.layers):
                row = self._row(layer, place)
                operations, edges = operations + self.l0 * row[0], edges + self.l0 * row[1]
        share = 1.0 if rows is None else min(1.0, rows / self.active(tokens))
        last = self._row(self.layers, tokens - 1)
        return share * operations + TARGETS * last[0], share * edges + TARGETS * last[1]

    def _row(self, layer: int, place: int) -> tuple[float, float]:
        """(operations, edges) of one target before the MLP of a layer, at a position."""
        span = place + 1
        sources = self.l0 * layer * place + span * (layer + 1)
        folded = 2 * self.width * self.head * (self.heads + self.kv_heads) * span
        step = folded + 2 * span**2 * self.head * self.heads
        return max(layer - 1, 0) * step + 2 * self.width * sources, sources

    def patterns(self, tokens: int) -> float:
        """Bytes of all attention patterns, and of one layer's scores on their way."""
        return 4.0 * (self.layers + 3) * self.heads * tokens**2

    def writes(self, tokens: int, cross_layer: bool = False) -> float:
        """Bytes of what active features write."""
        return 4.0 * self.active(tokens) * self.width * ((self.layers + 1) / 2) ** cross_layer

    def on_gpu(self, tokens: int, cross_layer: bool = False) -> float:
        """Bytes on the GPU that does the sweep, where it holds the model too."""
        encoder = 2.0 * self.features * self.width
        held = 2 * self.parameters + self.folded + encoder + 12 * ELEMENTS
        return held + self.writes(tokens, cross_layer) + self.patterns(tokens)

    def seconds(self, tokens: int, rows: int | None, cross_layer: bool = False) -> float:
        """Of a trace: operations, and encoders and decoder rows on their way, one by one."""
        work = self.sweep(tokens, rows)[0] + self.forward(tokens)
        return work / RATE + (2 * self.encoders + self.writes(tokens, cross_layer)) / LINK

    @property
    def folded(self) -> float:
        """Bytes of value and output weights, with norms folded in."""
        return 4.0 * self.layers * self.width * self.head * (self.heads + self.kv_heads)


BUNDLED = Shape("bundled", 8, 128, 4, 4, 32, 256, 4224, 1024, 20)
"""Too small for an accelerator's rate to say anything: no times are given."""
SHAPES = (
    BUNDLED,
    Shape("2B, 426k features", 26, 2304, 8, 4, 256, 9216, 256_000, 16_384, 60, tied=True),
    Shape("8B, 4.2M features", 32, 4096, 32, 8, 128, 14_336, 128_256, 131_072, 100),
    Shape("70B, 10M features", 80, 8192, 64, 8, 128, 28_672, 128_256, 125_000, 100),
)


NEEDED = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)


def size(count: float, unit: str = "B") -> str:
    """Three digits and a prefix."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 1000 or prefix == "P":
            break
        count /= 1000
    return (
        f"{count:.3g} {prefix}{unit}".rstrip() if count < 1000 else f"{count:,.0f} {prefix}{unit}"
    )


def power(count: float) -> str:
    return f"{count:.1e}".replace("e+0", "e").replace("e+", "e")


def lasting(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= length or unit == "ms":
            break
    return (
        f"{seconds / length:,.2g} {unit}"
        if seconds < 100 * length
        else f"{seconds / length:,.0f} {unit}"
    )


Line = tuple[str, Callable[[Shape], str]]

STORAGE: tuple[Line, ...] = (
    ("parameters", lambda s: size(s.parameters, "")),
    ("the model, bfloat16", lambda s: size(2 * s.parameters)),
    ("per-layer set, bfloat16", lambda s: size(2 * 2 * s.encoders)),
    ("cross-layer set, bfloat16", lambda s: size(2 * s.cross_layer)),
    ("training a per-layer set (16 bytes a number)", lambda s: size(16 * 2 * s.encoders)),
    ("training a cross-layer set", lambda s: size(16 * s.cross_layer)),
    ("activations, a token, float32", lambda s: size(8 * s.layers * s.width)),
    ("activations, 10⁸ tokens, 8 bits", lambda s: size(1e8 * s.layers * (2 * s.width + 8))),
)

TRACE: tuple[Line, ...] = (
    ("active features", lambda s: f"{s.active(TOKENS):,}"),
    ("forward pass and encoders, operations", lambda s: power(s.forward(TOKENS))),
    ("encoders read, bfloat16", lambda s: size(2 * s.encoders)),
    ("decoder rows read, per-layer", lambda s: size(s.writes(TOKENS) / 2)),
    ("decoder rows read, cross-layer", lambda s: size(s.writes(TOKENS, True) / 2)),
    ("what they write, float32, per-layer", lambda s: size(s.writes(TOKENS))),
    ("what they write, cross-layer", lambda s: size(s.writes(TOKENS, True))),
    ("folded attention weights, float32", lambda s: size(s.folded)),
    ("attention patterns", lambda s: size(s.patterns(TOKENS))),
    ("all rows: operations", lambda s: power(s.sweep(TOKENS)[0])),
    ("all rows: edges, float32", lambda s: size(4 * s.sweep(TOKENS)[1])),
    ("10,000 rows: operations", lambda s: power(s.sweep(TOKENS, ROWS)[0])),
    ("10,000 rows: edges, float32", lambda s: size(4 * s.sweep(TOKENS, ROWS)[1])),
    ("the same, `--keep-edges 0.95`", lambda s: size(kept(s.sweep(TOKENS, ROWS)[1]))),
    ("GPU memory, per-layer", lambda s: size(s.on_gpu(TOKENS))),
    ("GPU memory, cross-layer", lambda s: size(s.on_gpu(TOKENS, True))),
    ("encoders to the GPU, at 25 GB/s", lambda s: lasting(2 * s.encoders / LINK)),
    (
        "all rows, with that, at 10¹⁴ operations a second",
        lambda s: lasting(s.seconds(TOKENS, None)),
    ),
    ("10,000 rows, likewise", lambda s: lasting(s.seconds(TOKENS, ROWS))),
    ("10,000 rows, cross-layer", lambda s: lasting(s.seconds(TOKENS, ROWS, True))),
    ("1,000 prompts, 10,000 rows each", lambda s: lasting(PROMPTS * s.seconds(TOKENS, ROWS))),
    ("their files, all edges", lambda s: size(4 * PROMPTS * s.sweep(TOKENS, ROWS)[1])),
)

TRAIN: tuple[Line, ...] = (
    ("the model once over the text: operations", lambda s: power(2 * s.parameters * CORPUS)),
    ("per-layer set: operations", lambda s: power(6 * 2 * s.encoders * CORPUS)),
    ("cross-layer set: operations", lambda s: power(6 * s.cross_layer * CORPUS)),
    ("model and per-layer set at 10¹⁴ a second", lambda s: lasting(training(s, 2 * s.encoders))),
    ("model and cross-layer set, likewise", lambda s: lasting(training(s, s.cross_layer))),
    ("GPUs of 80 GB that hold the per-layer set", lambda s: cards(16 * 2 * s.encoders)),
    ("GPUs of 80 GB that hold the cross-layer set", lambda s: cards(16 * s.cross_layer)),
)

BUILD: tuple[Line, ...] = (
    ("counting: operations", lambda s: power(s.forward(CORPUS))),
    ("the same at 10¹⁴ a second", lambda s: lasting(s.forward(CORPUS) / RATE)),
    (
        "encoders to the GPU for every piece where they do not stay, at 25 GB/s",
        lambda s: lasting(copied(s)),
    ),
    ("places where features fire", lambda s: power(CORPUS * s.layers * s.l0)),
    ("counting these on a CPU core, 0.8 µs each", lambda s: lasting(counting(s))),
    ("counts in memory, a worker", lambda s: size(s.all_features * tally())),
    ("pieces read again to describe, at most", lambda s: power(again(s))),
    ("times the pieces that were counted", lambda s: f"{again(s) * PIECE / CORPUS:.2g}"),
)


def training(shape: Shape, numbers: float) -> float:
    """Seconds of going once over the text: the model forward, the set forward and back."""
    return CORPUS * (2 * shape.parameters + 6 * numbers) / RATE


def cards(count: float, memory: float = 80e9) -> str:
    """GPUs that hold so many bytes and nothing else."""
    return f"{count / memory:.2g}" if count < memory else f"{-(-count // memory):,.0f}"


def counting(shape: Shape) -> float:
    return CORPUS * shape.layers * shape.l0 * COUNTING


def kept(edges: float) -> float:
    """Bytes of rows cut to 95 %: the values kept, and a bit for every place."""
    return edges * (4 * KEPT + 1 / 8)


def copied(shape: Shape) -> float:
    """Seconds on the link in a feature build: each piece of text meets all encoders."""
    return CORPUS / PIECE * 2 * shape.encoders / LINK


def tally(languages: int = 1) -> int:
    """Bytes that a feature's counts take while a corpus goes by."""
    return 8 * (4 + BINS + languages) + ENTRY * EXAMPLES


def again(shape: Shape) -> float:
    """Pieces of text that hold a strongest example, layer by layer: eight a feature, or all."""
    return shape.layers * min(CORPUS / PIECE, 8 * shape.features)


def table(title: str, lines: Sequence[Line], shapes: Sequence[Shape]) -> list[str]:
    head = [f"| {title} | " + " | ".join(s.name for s in shapes) + " |", "|---" * (len(shapes) + 1)]
    rows = [f"| {name} | " + " | ".join(of(s) for s in shapes) + " |" for name, of in lines]
    return [head[0], head[1] + "|", *rows]


def by_length(shape: Shape) -> list[str]:
    """How a trace grows with its prompt."""
    lines = [
        f"| {shape.name}, tokens | active features | patterns | all rows: operations | edges "
        "| 10,000 rows: operations | edges | edges, 0.95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tokens in LENGTHS:
        (whole, edges), (some, few) = shape.sweep(tokens), shape.sweep(tokens, ROWS)
        cells = [f"{tokens:,}", f"{shape.active(tokens):,}", size(shape.patterns(tokens))]
        cells += [power(whole), size(4 * edges), power(some), size(4 * few), size(kept(few))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables(shapes: Sequence[Shape] = SHAPES) -> str:
    large = [shape for shape in shapes if shape is not BUNDLED]
    parts = {
        "Storage": table("", STORAGE, shapes),
        f"One prompt of {TOKENS} tokens": table("", TRACE, large),
        "Longer prompts": by_length(large[0]),
        "Training on 10⁹ tokens": table("", TRAIN, large),
        "A feature store from 10⁹ tokens": table("", BUILD, large),
    }
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())


def put(page: str) -> str:
    """The page with its tables renewed."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def yours(config: Path, features: int, l0: int) -> Shape:
    """The shape of a Hugging Face folder's config.json; of a dense model, with a gated MLP."""
    found = json.loads(config.read_text(encoding="utf-8"))
    found = found.get("text_config", found)
    if missing := [name for name in NEEDED if name not in found]:
        raise SystemExit(f"{config} does not say {', '.join(missing)}")
    heads, width = found["num_attention_heads"], found["hidden_size"]
    return Shape(
        config.resolve().parent.name,
        found["num_hidden_layers"],
        width,
        heads,
        found.get("num_key_value_heads", heads),
        found.get("head_dim") or width // heads,
        found["intermediate_size"],
        found["vocab_size"],
        features,
        l0,
        bool(found.get("tie_word_embeddings")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, nargs="?", help="config.json of a model of your own")
    parser.add_argument("--features", type=int, default=16_384, help="its features a layer")
    parser.add_argument("--l0", type=int, default=60, help="active ones a token and layer")
    parser.add_argument("--page", action="store_true", help="put the tables into docs/scale.md")
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    shapes = (yours(given.config, given.features, given.l0),) if given.config else SHAPES
    print(tables(shapes))


if __name__ == "__main__":
    main()
