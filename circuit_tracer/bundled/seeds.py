"""What of the card is luck: the transcoders made again from other seeds, and measured as they are.

    python -m circuit_tracer.bundled.seeds --kind plt --seeds 1 2 3 --out DIR

A set is made by the recipe's own stage, on the model that ships, into DIR/seed_N; one that is there
is not made again. The figures are those of the card, on the same held-out prompts. They are
printed beside the card's, and kept in DIR/KIND.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from circuit_tracer.files import write_text

HOME = Path(__file__).parent / "weights"
FIGURES = (
    ("agreement", "same top token"),
    ("kl", "KL, nats"),
    ("accuracy_replaced", "accuracy, replaced"),
    ("cross_entropy_replaced", "cross-entropy of the answer, replaced"),
    ("cross_entropy_all_replaced", "cross-entropy of every token, replaced"),
    ("normalised_error", "normalised error, mean of layers"),
    ("l0", "L0, mean of layers"),
    ("unused_share", "unused features"),
)
"""Name in the card, and what it is called."""


def main(arguments: list[str] | None = None) -> int:
    """Make, measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="seeds", description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("plt", "clt"), default="plt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=1500, help="prompts a figure, at most")
    options = parser.parse_args(arguments)
    found = {}
    for seed in options.seeds:
        folder = options.out / f"seed_{seed}"
        made(folder, options.kind, seed, options.threads)
        found[f"seed {seed}"] = measured(folder, options.kind, options.prompts)
    write_text(options.out / f"{options.kind}.json", json.dumps(found, indent=1) + "\n")
    card = json.loads((HOME / "card.json").read_text(encoding="utf-8"))["replacement"]
    print("\n".join(table({"card": card[options.kind]} | found)))
    return 0


def made(folder: Path, kind: str, seed: int, threads: int) -> None:
    """The set of a seed, in a folder beside the model that ships."""
    from circuit_tracer.bundled import recipe

    if (folder / kind / "config.yaml").is_file():
        return
    if not (folder / "model").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(HOME / "model", folder / "model")
    words = ["--stage", kind, "--seed", seed, "--threads", threads, "--out", folder, "--quiet"]
    recipe.main([str(word) for word in words])


def measured(folder: Path, kind: str, prompts: int) -> dict[str, object]:
    """The card's figures of a set."""
    from circuit_tracer.bundled import measure
    from circuit_tracer.bundled.folder import Folded
    from circuit_tracer.bundled.language_model import read
    from circuit_tracer.bundled.recipe import load_tokenizer
    from circuit_tracer.loading import load

    model, tokenizer = read(folder / "model"), load_tokenizer(folder / "model")
    spliced = load(folder / "model", folder / kind)
    sentences = measure.unseen(prompts, 0)
    return measure.replacement(spliced, model, tokenizer, Folded(folder / kind), sentences)


def table(found: dict[str, dict]) -> list[str]:
    """A row a figure, a column a set, in Markdown."""
    rows = [["", *found], ["---"] * (len(found) + 1)]
    for name, said in FIGURES:
        rows.append([said, *(f"{_mean(one[name]):.4f}" for one in found.values())])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _mean(value: float | Sequence[float]) -> float:
    return float(value) if isinstance(value, int | float) else statistics.fmean(value)


if __name__ == "__main__":
    sys.exit(main())
