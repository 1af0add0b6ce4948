"""What features mean: a store of examples, figures, outputs and labels, built once and read often.

    corpus → build (tally, part) → describing (firing, similar) → file → store → labels, site

`build` passes a corpus through the model and writes one SQLite file; `open_store` reads it;
`annotate` puts its labels into a graph. `reference` reads and writes the reference tool's files.
"""

from circuit_tracer.features.building import build, count, merge
from circuit_tracer.features.describing import Detail
from circuit_tracer.features.graphs import annotate
from circuit_tracer.features.store import Store, open_store

__all__ = ["Detail", "Store", "annotate", "build", "count", "merge", "open_store"]
