"""`circuit-tracer batch`: one file a prompt, one table, and nothing lost whatever happens."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
import circuit_tracer.batch.running as batching
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
        wanted = statistics(graph, graph.prune(nodes=0.8, edges=0.98))
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


@pytest.mark.parametrize("room", [0, 2_000, 8_000])
def test_a_full_disk_ends_the_batch_and_keeps_what_is_finished(model, tmp_path, room):
    resource = pytest.importorskip("resource", reason="files cannot be limited in size here")
    run(JOBS[:1], model, tmp_path)
    before, limits = files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert room < (tmp_path / "graphs" / "a.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # the system refuses what is more
    try:
        with pytest.raises(OutputError, match="cannot write"):
            run(JOBS, model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    del before["batch.json"]
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) == {*before, "batch.json"}  # no half of a file either
    assert ct.Graph.load(tmp_path / "graphs" / "a.safetensors").index.n_features > 0
    assert [record.error for record in run(JOBS, model, tmp_path)] == [None] * 3


KILLED = """
import os, signal, sys
from pathlib import Path
from circuit_tracer import files
from circuit_tracer.batch import Job, run
from tests import tiny

moved = []
def replace(source, target, original=os.replace):
    moved.append(target)
    if len(moved) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)

os.replace = replace
run([Job(f"p{k}", [2, 5 + k, 9]) for k in range(3)], tiny.replacement("llama"), Path(sys.argv[1]))
"""


def test_a_batch_that_the_system_kills_at_work_goes_on_where_it_stopped(model, tmp_path):
    jobs = [Job(f"p{k}", [2, 5 + k, 9]) for k in range(3)]
    out = [sys.executable, "-c", KILLED, str(tmp_path / "out"), "7"]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(out, env=paths, timeout=300).returncode == -signal.SIGKILL
    before = files(tmp_path / "out")
    assert "graphs/p1.safetensors" in before and "records/p1.json" not in before
    run(jobs, model, tmp_path / "out")
    run(jobs, model, tmp_path / "whole")
    after = files(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if "/p0." in name)
    assert {name for name in after if not name.endswith(".tmp")} == set(files(tmp_path / "whole"))
    for job in jobs:
        graphs = [
            ct.Graph.load(tmp_path / side / "graphs" / f"{job.id}.safetensors")
            for side in ("out", "whole")
        ]
        assert graphs[0].dense().equal(graphs[1].dense())


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


@pytest.mark.parametrize(
    ("text", "what"), [('{"nodes":\n []}', "JSON"), ("<!doctype html>", "a page")]
)
def test_a_graph_or_a_page_is_not_taken_for_prompts(tmp_path, text, what):
    (tmp_path / "graph.json").write_text(text)
    with pytest.raises(InputError, match=f"holds {what}, not a prompt a line"):
        read_jobs(tmp_path / "graph.json")


def test_a_prompt_may_begin_with_a_brace(tmp_path):
    (tmp_path / "p.txt").write_text("{ x +\nfor x in\n")
    assert [job.prompt for job in read_jobs(tmp_path / "p.txt")] == ["{ x +", "for x in"]


def test_prompts_are_read_from_lines_and_objects(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert read_jobs(tmp_path / "p.txt") == [Job("00001", "one"), Job("00003", "two")]
    (tmp_path / "p.jsonl").write_text('"one"\n{"prompt": [2, 5], "id": "x", "answer": null}\n')
    assert read_jobs(tmp_path / "p.jsonl") == [Job("00001", "one"), Job("x", [2, 5])]


def test_a_cluster_is_asked_for_by_its_address(tmp_path):
    (tmp_path / "p.txt").write_text("Hi\n")
    given = ["batch", str(tmp_path / "p.txt"), "-o", str(tmp_path / "out")]
    found = CliRunner().invoke(main, [*given, "--workers", "2"])
    assert found.exit_code == 2 and "give --ray too" in found.output
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    found = CliRunner().invoke(main, [*given, "--ray", "127.0.0.1:1"])
    assert found.exit_code == 2 and "nothing answers at 127.0.0.1:1" in found.output
    assert not (tmp_path / "out").exists()


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


SIDE_BY_SIDE = [
    Job("a", [2, 5, 7, 9]),
    Job("longer", [2, 5, 7, 9, 11]),
    Job("b", [2, 6, 8, 9]),
    Job("empty", ""),
    Job("c", [2, 9, 21, 5], targets=("w30",)),
    Job("d", [2, 8, 8, 8]),
]


def test_prompts_traced_together_have_the_figures_of_each_alone(model, tmp_path, monkeypatch):
    groups, original = [], batching.trace_abreast
    monkeypatch.setattr(
        batching,
        "trace_abreast",
        lambda asked, model: groups.append([one.prompt for one in asked]) or original(asked, model),
    )
    alone = run(SIDE_BY_SIDE, model, tmp_path / "alone")
    assert groups == []
    found = run(SIDE_BY_SIDE, model, tmp_path / "together", together=3)
    of = {job.id: job.prompt for job in SIDE_BY_SIDE}
    assert groups == [[of["a"], of["b"], of["c"]]]  # the others are by themselves
    for one, other in zip(alone, found, strict=True):
        assert one.job == other.job and one.error == other.error
        figures = [{k: v for k, v in r.figures.items() if k != "seconds"} for r in (one, other)]
        for name, value in figures[0].items():
            close = not isinstance(value, str) and value is not None
            wanted = pytest.approx(value, abs=1e-9) if close else value
            assert figures[1][name] == wanted, name
    assert {path.name for path in (tmp_path / "together").rglob("*.*")} == {
        path.name for path in (tmp_path / "alone").rglob("*.*")
    }
    run(SIDE_BY_SIDE, model, tmp_path / "together")  # another number is no other batch
    assert len(groups) == 1


def test_a_prompt_that_fails_does_not_take_those_beside_it_along(model, tmp_path):
    jobs = [*SIDE_BY_SIDE[:3], Job("bad", [2, 6, 7, 5], targets=("no such",))]
    records = run(jobs, model, tmp_path, together=8)
    assert [record.error is None for record in records] == [True, True, True, False]
    assert "no such" in records[3].error


def test_a_batch_of_prompts_side_by_side_goes_on_where_it_stopped(model, tmp_path, monkeypatch):
    jobs = [Job(f"p{k}", [2, 5 + k, 9]) for k in range(5)]
    original = batching.Folder.keep

    def stop(folder, job, found):
        if job.id == "p3":
            raise KeyboardInterrupt
        return original(folder, job, found)

    with monkeypatch.context() as patch:
        patch.setattr(batching.Folder, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(jobs, model, tmp_path, together=2)
    before = files(tmp_path)
    records = run(jobs, model, tmp_path, together=2)
    assert [record.error for record in records] == [None] * 5
    assert all(files(tmp_path)[f"graphs/p{k}.safetensors"] == before[f"graphs/p{k}.safetensors"]
               for k in range(3))  # fmt: skip
