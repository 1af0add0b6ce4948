"""Many prompts, one model: a graph file each, a table of what they are like, and an index page.

    DIR/graphs/ID.safetensors     the graph, as `Graph.load` reads it
    DIR/records/ID.json           what the table says of it, or why there is none
    DIR/table.csv, table.jsonl    all records (table.arrow too, where pyarrow is installed)
    DIR/index.html                the table, for people
    DIR/batch.json                model, transcoders and options; the same for every graph in DIR

A record is written after its graph, and each whole or not at all: a batch that was killed goes on
where it stopped and nothing is lost or doubled. A prompt that fails is recorded with its reason and
the next one is traced. Numbers of a table are those of the whole graph but for `kept_…`, which are
of the circuit that pruning leaves.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuit_tracer.errors import CircuitTracerError, InputError, OutputError
from circuit_tracer.files import replacing, write_text
from circuit_tracer.graph import Graph
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.tracing import trace
from circuit_tracer.view.report import page

Progress = Callable[[float, str], None]
IDENTITY, SHOWN = "batch.json", 80
NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Job:
    """One prompt of a batch.

    Attributes:
        id: names its files.
        prompt: text, or token ids.
        answer, targets, chat: as in `trace`.
    """

    id: str
    prompt: str | list[int]
    answer: str | None = None
    targets: tuple[str | int, ...] | None = None
    chat: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        found = dataclasses.asdict(self)
        return found | {"targets": None if self.targets is None else list(self.targets)}


@dataclass(frozen=True)
class Record:
    """What is known of one prompt.

    Attributes:
        job: what was asked.
        error: why there is no graph; None where there is one.
        figures: by name; empty where there is no graph.
    """

    job: Mapping[str, Any]
    error: str | None
    figures: Mapping[str, Any] = field(default_factory=dict)


def read_jobs(path: Path) -> list[Job]:
    """The prompts of a file: JSON lines (.jsonl), each an object with "prompt" and maybe "id",
    "answer", "targets" and "chat", or a string; otherwise a prompt a line.

    Raises:
        InputError: it cannot be read, or a line is none of these; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompts")
    jobs: dict[str, Job] = {}
    for number, line in lines:
        place = f"{path}, line {number}"
        job = _job(line, f"{number:05}", place, path.suffix == ".jsonl")
        if job.id.casefold() in jobs:  # one file each, also where names differ in case only
            raise InputError(f"{place}: the id {job.id!r} was used before; ids name files")
        jobs[job.id.casefold()] = job
    return list(jobs.values())


def _job(line: str, number: str, place: str, as_json: bool) -> Job:
    if not as_json:
        return Job(number, line.removesuffix("\r"))
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    if isinstance(found, str):
        return Job(number, found)
    names = [one.name for one in dataclasses.fields(Job)]
    if not isinstance(found, dict) or "prompt" not in found or not set(found) <= set(names):
        raise InputError(
            f'{place}: expected a string, or an object with "prompt" and nothing but '
            f"{', '.join(names)}; got {line.strip()[:80]}"
        )
    found = {name: value for name, value in found.items() if value is not None}
    job = Job(**({"id": number} | found))
    if "targets" in found and isinstance(found["targets"], list):
        job = dataclasses.replace(job, targets=tuple(found["targets"]))
    _check(job, place)
    return job


def _check(job: Job, place: str) -> None:
    ids = isinstance(job.prompt, list) and all(type(token) is int for token in job.prompt)
    targets = job.targets is None or isinstance(job.targets, tuple)
    wrong = {
        "prompt": not (isinstance(job.prompt, str) or ids),
        "answer": not (job.answer is None or isinstance(job.answer, str)),
        "targets": not targets,
        "chat": not isinstance(job.chat, bool),
        "id": not (isinstance(job.id, str) and NAMED.fullmatch(job.id)),
    }
    for name, bad in wrong.items():
        if bad:
            raise InputError(
                f"{place}: {name} cannot be {getattr(job, name)!r}; prompt is text or token ids, "
                "answer text, targets a list, chat true or false, and id letters, digits, . _ -"
            )


def run(
    jobs: Sequence[Job],
    model: ReplacementModel,
    folder: Path,
    nodes: float = 0.8,
    edges: float = 0.98,
    retry: bool = False,
    progress: Progress = lambda done, message: None,
    **options: Any,
) -> list[Record]:
    """Trace every prompt that has no record yet, and write table and index.

    Args:
        folder: made if it is not there.
        nodes, edges: pruning thresholds of the `kept_…` figures.
        retry: also trace again what failed before.
        options: of `trace`, for all prompts.

    Returns:
        A record a prompt, in order.

    Raises:
        InputError: the folder holds a batch with another model or other options.
        OutputError: the folder, or a file in it, cannot be written; what is there stays.
    """
    identity = {
        "model": model.adapter.name,
        "transcoders": model.transcoders.name,
        "nodes": nodes,
        "edges": edges,
        **{name: value for name, value in options.items() if name != "kernels"},
    }
    _open(folder, identity)
    records = []
    for number, job in enumerate(jobs):
        progress(number / len(jobs), f"{number + 1:,} of {len(jobs):,}: {_short(job.prompt)}")
        record = _known(folder, job)
        if record is None or (retry and record.error is not None):
            record = _traced(job, model, folder, nodes, edges, options)
        records.append(record)
    progress(1.0, "writing the table")
    write_tables(folder, records, identity)
    return records


def _open(folder: Path, identity: dict[str, Any]) -> None:
    try:
        for name in ("graphs", "records"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    path, identity = folder / IDENTITY, json.loads(json.dumps(identity))
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged; name another folder") from error
        for name in sorted({*before, *identity}):
            if before.get(name) != identity.get(name):
                raise InputError(
                    f"{folder} holds a batch with another {name}: {before.get(name)!r} there, "
                    f"{identity.get(name)!r} here. Name another folder"
                )
    write_text(path, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")


def _known(folder: Path, job: Job) -> Record | None:
    """The record of a job that was done before; a changed prompt is another job."""
    try:
        found = Record(**json.loads(_record(folder, job).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if found.job != job.plain() or (found.error is None and not _graph(folder, job).is_file()):
        return None
    return found


def _traced(
    job: Job,
    model: ReplacementModel,
    folder: Path,
    nodes: float,
    edges: float,
    options: Mapping[str, Any],
) -> Record:
    """Trace one prompt and write what came of it. A disk that is full ends the batch."""
    try:
        graph = trace(
            job.prompt, model, targets=job.targets, answer=job.answer, chat=job.chat, **options
        )
        figures = statistics(graph, nodes, edges)
    except Exception as error:  # whatever it is, it is this prompt's: the others are traced
        record = Record(job.plain(), _reason(error))
    else:
        graph.save(_graph(folder, job))
        record = Record(job.plain(), None, figures)
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, indent=1)
    write_text(_record(folder, job), text + "\n")
    return record


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, CircuitTracerError) else f"{type(error).__name__}: {text}"


def statistics(graph: Graph, nodes: float = 0.8, edges: float = 0.98) -> dict[str, Any]:
    """Figures of a graph: sizes, scores, path lengths, and nodes by layer."""
    scores, circuit = graph.scores, graph.prune(nodes=nodes, edges=edges)
    layers = graph.index.n_layers
    active, kept = [0] * layers, [0] * layers
    for layer in graph.index.features[:, 0].tolist():
        active[layer] += 1
    for node in circuit.nodes:
        if node.kind == "feature":
            kept[node.layer] += 1
    first = graph.targets[0]
    return {
        "tokens": len(graph.tokens),
        "target": first.label,
        "probability": first.probability,
        "features": graph.index.n_features,
        "expanded": int(graph.expanded[: graph.index.n_features].sum()),
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "mean_path_length": scores.mean_path_length,
        "error_share": sum(scores.error_share_by_layer),
        "unexpanded_share": scores.unexpanded_share,
        "closure_error": graph.closure_error,
        "kept_nodes": len(circuit.nodes),
        "kept_edges": len(circuit.weights),
        "kept_replacement": circuit.scores.replacement,
        "kept_mean_path_length": circuit.scores.mean_path_length,
        "seconds": sum(graph.timings.values()),
        "error_share_by_layer": list(scores.error_share_by_layer),
        "features_by_layer": active,
        "kept_features_by_layer": kept,
    }


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The table: a row a prompt, every row with the same columns."""
    columns = list(dict.fromkeys(name for record in records for name in record.figures))
    return [
        {
            "id": record.job["id"],
            "prompt": record.job["prompt"],
            "error": record.error,
            **{name: record.figures.get(name) for name in columns},
        }
        for record in records
    ]


def write_tables(folder: Path, records: Sequence[Record], identity: Mapping[str, Any]) -> None:
    """Write the table in every form, and the index page."""
    table = rows(records)
    lines = [json.dumps(row, ensure_ascii=False) for row in table]
    write_text(folder / "table.jsonl", "\n".join(lines) + "\n")
    write_text(folder / "table.csv", _csv(table))
    if importlib.util.find_spec("pyarrow"):
        _write_arrow(table, folder / "table.arrow")
    write_text(folder / "index.html", _index(records, identity))


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV; figures by layer become a column a layer."""
    flat = []
    for row in table:
        line: dict[str, Any] = {}
        for name, value in row.items():
            if name.endswith("_by_layer"):
                values = value or []
                line |= {f"{name[:-9]}_{layer}": one for layer, one in enumerate(values)}
            else:
                line[name] = json.dumps(value) if isinstance(value, list) else value
        flat.append(line)
    columns = list(dict.fromkeys(name for line in flat for name in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _write_arrow(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    pyarrow = importlib.import_module("pyarrow")
    plain = [
        {**row, "prompt": row["prompt"] if isinstance(row["prompt"], str) else str(row["prompt"])}
        for row in table
    ]
    made = pyarrow.Table.from_pylist(plain)
    with replacing(path) as place, pyarrow.ipc.new_file(str(place), made.schema) as file:
        file.write_table(made)


def _index(records: Sequence[Record], identity: Mapping[str, Any]) -> str:
    """The index page: every prompt with its main figures, or its reason."""
    failed = sum(record.error is not None for record in records)
    names = ("replacement", "completeness", "mean_path_length", "error_share", "kept_nodes")
    body = [["id", "prompt", "target", *(name.replace("_", " ") for name in names), "failed"]]
    for record in records:
        found = record.figures
        cells = [_number(found[name]) if found else "" for name in names]
        target = str(found["target"]) if found else ""
        prompt = _short(record.job["prompt"])
        body.append([record.job["id"], prompt, target, *cells, record.error or ""])
    said = f"{len(records) - failed:,} of {len(records):,} prompts were traced."
    facts = [(name, str(value)) for name, value in identity.items()]
    return page("Graphs of a batch", said, facts, table=body)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _short(prompt: str | Sequence[int]) -> str:
    text = prompt if isinstance(prompt, str) else str(list(prompt))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _graph(folder: Path, job: Job) -> Path:
    return folder / "graphs" / f"{job.id}.safetensors"


def _record(folder: Path, job: Job) -> Path:
    return folder / "records" / f"{job.id}.json"
