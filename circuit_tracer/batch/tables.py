"""Tables: a row a prompt, as CSV, JSON lines and Arrow.

Columns are the same whatever the batch holds, so that tables of several batches can be joined.
Arrow (the IPC file format, which pandas, polars, R and DuckDB read without conversion) is written
by pyarrow, an extra: 45 MB that only tables need are not asked of everybody.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuit_tracer.batch.folder import Record
from circuit_tracer.batch.statistics import COLUMNS
from circuit_tracer.files import replacing, write_text

ARROW = "table.arrow"
Row = Mapping[str, Any]


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The table: a row a prompt, every row with the same columns."""
    return [
        {
            "id": record.job["id"],
            "prompt": record.job["prompt"],
            "error": record.error,
            **{name: record.figures.get(name) for name in COLUMNS},
        }
        for record in records
    ]


def arrow_installed() -> bool:
    """Whether an Arrow table can be written."""
    return importlib.util.find_spec("pyarrow") is not None


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write the table in every form. An Arrow table that cannot be kept up to date is removed."""
    table = rows(records)
    lines = [json.dumps(row, ensure_ascii=False) for row in table]
    write_text(folder / "table.jsonl", "\n".join(lines) + "\n")
    write_text(folder / "table.csv", _csv(table))
    if arrow_installed():
        _write_arrow(table, folder / ARROW)
    else:
        (folder / ARROW).unlink(missing_ok=True)


def _csv(table: Sequence[Row]) -> str:
    """The table as CSV; a list becomes a column an entry, `features_by_layer` → `features_3`."""
    flat = []
    for row in table:
        line: dict[str, Any] = {}
        for name, value in row.items():
            if isinstance(COLUMNS.get(name), tuple):
                stem = name.rpartition("_by_")[0]
                start = 1 if name.endswith("length") else 0
                line |= {f"{stem}_{k}": one for k, one in enumerate(value or [], start)}
            else:
                line[name] = json.dumps(value) if isinstance(value, list) else value
        flat.append(line)
    columns = list(dict.fromkeys(name for line in flat for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _write_arrow(table: Sequence[Row], path: Path) -> None:
    arrow = importlib.import_module("pyarrow")
    kinds = {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    fields = [(name, arrow.string()) for name in ("id", "prompt", "error")]
    for name, kind in COLUMNS.items():
        fields.append(
            (name, arrow.list_(kinds[kind[0]]) if isinstance(kind, tuple) else kinds[kind])
        )
    plain = [
        {**row, "prompt": row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"])}
        for row in table
    ]
    made = arrow.Table.from_pylist(plain, schema=arrow.schema(fields))
    with replacing(path) as place, arrow.ipc.new_file(str(place), made.schema) as file:
        file.write_table(made)
