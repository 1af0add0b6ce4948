"""`circuit-tracer batch`: one file a prompt, one table, and nothing lost whatever happens."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
import circuit_tracer.batch as batching
from circuit_tracer.batch import Job, read_jobs, run, statistics
from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError, OutputError
from tests import tiny

JOBS = [Job("a", "w5 w6 w7"), Job("b", [2, 9, 21, 5]), Job("c", "w8 w9 w9", targets=("w30",))]


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("llama")


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_prompt_has_a_graph_and_a_row_that_is_the_graphs(model, tmp_path):
    records = run(JOBS, model, tmp_path / "out")
    assert [record.error for record in records] == [None] * 3
    lines = (tmp_path / "out" / "table.jsonl").read_text().split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    for job, row in zip(JOBS, rows, strict=True):
        graph = ct.Graph.load(tmp_path / "out" / "graphs" / f"{job.id}.safetensors")
        wanted = statistics(graph)
        del wanted["seconds"]
        assert {name: row[name] for name in wanted} == wanted
        assert sum(row["features_by_layer"]) == row["features"] == graph.index.n_features
        shares = row["replacement"] + row["error_share"] + row["unexpanded_share"]
        assert shares == pytest.approx(1)
    with open(tmp_path / "out" / "table.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(row["features_2"]) for row in table] == [
        row["features_by_layer"][2] for row in rows
    ]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "3 of 3 prompts were traced" in page and "w5 w6 w7" in page


def test_a_failing_prompt_is_recorded_and_the_rest_is_traced(model, tmp_path):
    jobs = [Job("bad", "w5", targets=("no such",)), Job("long", [5] * 99), *JOBS]
    records = run(jobs, model, tmp_path)
    assert "no such" in records[0].error and "99 tokens" in records[1].error
    assert [record.error for record in records[2:]] == [None] * 3
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().split("\n")[:-1]]
    assert rows[1]["error"] == records[1].error and rows[1]["features"] is None
    assert not (tmp_path / "graphs" / "bad.safetensors").exists()


def test_a_killed_batch_goes_on_where_it_stopped(model, tmp_path, monkeypatch):
    def stop(prompt, *arguments, **options):
        if prompt == JOBS[2].prompt:
            raise KeyboardInterrupt
        return original(prompt, *arguments, **options)

    original = batching.trace
    monkeypatch.setattr(batching, "trace", stop)
    with pytest.raises(KeyboardInterrupt):
        run(JOBS, model, tmp_path)
    before = files(tmp_path)
    (tmp_path / "records" / "b.json").write_text('{"job":')  # as if the power had failed
    traced = []
    monkeypatch.setattr(
        batching,
        "trace",
        lambda prompt, *a, **o: traced.append(prompt) or original(prompt, *a, **o),
    )
    run(JOBS, model, tmp_path)
    assert traced == [JOBS[1].prompt, JOBS[2].prompt]
    assert files(tmp_path)["graphs/a.safetensors"] == before["graphs/a.safetensors"]
    run(JOBS, model, tmp_path)
    assert len(traced) == 2
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_failures_are_tried_again_only_when_asked(model, tmp_path, monkeypatch):
    original = batching.trace
    monkeypatch.setattr(batching, "trace", lambda *a, **o: 1 / 0)
    assert run(JOBS[:1], model, tmp_path)[0].error == "ZeroDivisionError: division by zero"
    monkeypatch.setattr(batching, "trace", original)
    assert run(JOBS[:1], model, tmp_path)[0].error is not None
    assert run(JOBS[:1], model, tmp_path, retry=True)[0].error is None


def test_a_changed_prompt_is_traced_anew_and_changed_options_are_refused(model, tmp_path):
    first = run(JOBS[:1], model, tmp_path)[0]
    again = run([Job("a", "w5 w6 w7 w8")], model, tmp_path)[0]
    assert again.figures["tokens"] == first.figures["tokens"] + 1
    with pytest.raises(InputError, match="another max_logits: None there, 3 here"):
        run(JOBS[:1], model, tmp_path, max_logits=3)


def test_a_full_disk_ends_the_batch_and_keeps_what_is_finished(model, tmp_path, monkeypatch):
    run(JOBS[:1], model, tmp_path)

    def full(self, path):
        raise OutputError("No space left on device")

    monkeypatch.setattr(ct.Graph, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        run(JOBS, model, tmp_path)
    assert ct.Graph.load(tmp_path / "graphs" / "a.safetensors").index.n_features > 0
    assert not (tmp_path / "records" / "b.json").exists()


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "line 2 is not JSON"),
        ('{"text": "a"}', 'an object with "prompt"'),
        ('{"prompt": "a", "id": "../x"}', "id cannot be '../x'"),
        ('{"prompt": "a", "id": "00001"}', "used before"),
        ('{"prompt": 5}', "prompt cannot be 5"),
        ('{"prompt": "a", "targets": "b"}', "targets cannot be 'b'"),
    ],
)
def test_lines_that_are_no_prompts_are_refused_with_their_number(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(InputError, match=says):
        read_jobs(path)


def test_prompts_are_read_from_lines_and_objects(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert read_jobs(tmp_path / "p.txt") == [Job("00001", "one"), Job("00003", "two")]
    (tmp_path / "p.jsonl").write_text('"one"\n{"prompt": [2, 5], "id": "x", "answer": null}\n')
    assert read_jobs(tmp_path / "p.jsonl") == [Job("00001", "one"), Job("x", [2, 5])]


def test_the_command_traces_a_file(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"The opposite of small is"\n{"prompt": "Hi", "targets": ["xyzzy"]}\n')
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["batch", str(prompts), "-o", str(out), "--max-features", "20", "--json"]
    )
    assert result.exit_code == 1, result.output
    rows = [json.loads(line) for line in result.stdout.split("\n") if line.startswith("{")]
    assert rows[0]["target"] == " large" and rows[0]["expanded"] == 20
    assert "xyzzy" in rows[1]["error"]
    assert "--answer" not in CliRunner().invoke(main, ["batch", "--help"]).output
