"""How quickly a feature store of a million features answers.

    python tests/benchmarks/feature_store.py [--features 1000000] [--folder DIR]

Makes a store of random features in a folder (removed afterwards), opens it afresh for every
question, as a command does, and prints the median of a few such times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from circuit_tracer.features import file, open_store, site
from circuit_tracer.features.store import Store

LAYERS, PIECES, LENGTH, VOCABULARY = 25, 20_000, 64, 50_000


def records(features: int) -> Iterator[file.Record]:
    draw = random.Random(0)
    shared = [detail(draw) for _ in range(400)]
    for layer in range(LAYERS):
        for one in range(features // LAYERS):
            fires = tuple(f"word{draw.randrange(VOCABULARY)}" for _ in range(3))
            says = tuple(f"word{int(draw.paretovariate(0.4)) % VOCABULARY}" for _ in range(3))
            count = int(draw.paretovariate(0.5)) % 100_000
            more = {**shared[draw.randrange(400)], "spoken": [count]}
            yield file.Record(layer, one, count, 9.0, draw.random(), fires, says, more)


def detail(draw: random.Random) -> dict:
    """As large as those of the bundled stores."""
    pieces = [draw.randrange(PIECES) for _ in range(6)]
    flat = [[x for k in range(0, LENGTH, 20) for x in (k, round(draw.random(), 3))] for _ in pieces]
    groups = [["Top", 0, 20, 1, 40, 2, 20], ["Interval 1", 1, 40], ["Random", 3, 20]]
    words = [f" word{draw.randrange(VOCABULARY)}" for _ in range(6)]
    values = [round(draw.random(), 3) for _ in range(3)]
    kin = [[draw.randrange(LAYERS), draw.randrange(9999)] for _ in range(6)]
    return {
        "bins": [20, *(draw.randrange(1000) for _ in range(14))],
        "groups": groups, "pieces": pieces, "flat": flat, "silent": [4, 5],
        "raised": words[:3], "raised_by": values, "lowered": words[3:], "lowered_by": values,
        "coactive": [[*key, 3, 24] for key in kin[:3]], "similar": [[*key, 0.5] for key in kin[3:]],
    }  # fmt: skip


def pieces() -> Iterator[file.Piece]:
    draw = random.Random(1)
    for _ in range(PIECES):
        yield file.Piece([draw.randrange(VOCABULARY) for _ in range(LENGTH)], "")


def timed(path: Path, name: str, question: Callable[[Store], object], times: int = 7) -> None:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        store = open_store(path)
        question(store)
        taken.append(time.perf_counter() - start)
        store.close()
    print(f"{name:40} {1000 * statistics.median(taken):8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, start = Path(folder) / "store.sqlite", time.perf_counter()
        about = {"positions": 10**8, "languages": {"": 10**8}, "widths": [0] * LAYERS}
        tokens = ((k, f" word{k}") for k in range(VOCABULARY))
        file.write(path, about, records(options.features), pieces(), tokens)
        size = path.stat().st_size / 1e6
        print(f"written in {time.perf_counter() - start:.0f} s, {size:,.0f} MB")
        last = options.features // LAYERS - 1
        timed(path, "open", lambda store: len(store))
        timed(path, "show the last feature", lambda store: store.feature(LAYERS - 1, last))
        timed(path, "search a whole word", lambda store: store.search("word77"))
        timed(path, "search a part of every word", lambda store: store.search("ord"))
        timed(path, "search what is nowhere", lambda store: store.search("nowhere"))
        timed(path, "lucky", lambda store: store.lucky())
        timed(path, "similar", lambda store: store.similar(3, 77))
        timed(path, "the last page of a layer", lambda store: store.rows(7, last - 99))
        timed(path, "the page of a feature", lambda store: site.page(store, "9/500.html"))


if __name__ == "__main__":
    main()
