"""Many prompts, one model: a graph file each, tables of what they are like, what they share.

    DIR/graphs/ID.safetensors     the graph, as `Graph.load` reads it
    DIR/profiles/ID.safetensors   what the merged graph needs of it
    DIR/pages/ID.html             the page, where pages are asked for
    DIR/records/ID.json           what the tables say of it, or why there is none
    DIR/table.csv, table.jsonl    all records (table.arrow too, where pyarrow is installed)
    DIR/merged.json               all circuits as one, with counts and intervals
    DIR/index.html                all of it, for people
    DIR/batch.json                model, transcoders and options; the same for every graph in DIR

A record is written after its graph, and each whole or not at all: a batch that was killed goes on
where it stopped and nothing is lost or doubled. A prompt that fails is recorded with its reason and
the next one is traced. Prompts are traced here (`run`) or by workers of a Ray cluster (`run_on`):
one by one, so that no graph depends on the company it was traced in, or, where that is asked for
(`together`), side by side, and then it does to rounding.
"""

from circuit_tracer.batch.folder import Record
from circuit_tracer.batch.jobs import Job, read_jobs
from circuit_tracer.batch.running import run, run_on
from circuit_tracer.batch.statistics import statistics
from circuit_tracer.batch.tables import rows

__all__ = ["Job", "Record", "read_jobs", "rows", "run", "run_on", "statistics"]
