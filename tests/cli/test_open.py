"""`circuit-tracer open`: graphs of every tool as pages, and files that are none."""

from __future__ import annotations

import gzip
import json
import webbrowser
from pathlib import Path

import pytest
from click.testing import CliRunner

from circuit_tracer.cli.main import main
from circuit_tracer.graph import Graph

THEIRS = (
    Path(__file__).parents[1] / "data" / "oracle" / "llama_relu_plt" / "graph_files" / "oracle.json"
)


@pytest.fixture(autouse=True)
def opened(tmp_path, monkeypatch):
    """Addresses that a browser was sent to."""
    addresses = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: addresses.append(url) or True)
    return addresses


def run(*words, status=0):
    result = CliRunner().invoke(main, ["open", *map(str, words)])
    assert result.exit_code == status, result.output
    return result


def marked(path, **given):
    """The reference tool's file with what a person did to it on Neuronpedia."""
    document = json.loads(THEIRS.read_text())
    document["qParams"] |= given
    path.write_text(json.dumps(document))
    return path


def ids(kind):
    return [node.id for node in Graph.read(THEIRS).prune(1.0, 1.0).find(kind=kind)]


def test_a_graph_of_the_reference_tool_becomes_a_page_and_is_shown(opened, tmp_path):
    output = run(THEIRS).stdout
    assert output.splitlines()[-1].split() == ["page", "oracle.json.html"]
    for said in ('"w111"', "closure   unknown", "kept      38 of 65 nodes, 264 of 264 edges"):
        assert said in output
    assert "nan" not in output
    assert opened == [(tmp_path / "oracle.json.html").as_uri()]
    assert (tmp_path / "oracle.json.html").read_text().startswith("<!")


def test_no_browser_is_opened_where_none_is_wanted_or_there_is_none(opened, tmp_path, monkeypatch):
    assert run(THEIRS, "--no-open", "-q", "-o", "a.html").output == "a.html\n"
    assert opened == []
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "the page is at oracle.json.html" in run(THEIRS, status=1).stderr
    assert (tmp_path / "oracle.json.html").exists()


def test_ours_complete_and_compressed(tmp_path):
    Graph.read(THEIRS).save(tmp_path / "g.safetensors")
    assert "264 edges" in run("g.safetensors", "--edge-threshold", 1, "--no-open").stdout
    few = run("g.safetensors", "--max-nodes", 2, "--no-open", "-o", tmp_path).stdout
    assert "kept      21 of 65" in few and "g.safetensors.html" in few
    (tmp_path / "g.json.gz").write_bytes(gzip.compress(THEIRS.read_bytes()))
    assert run("g.json.gz", "-q", "--no-open").output == "g.json.gz.html\n"


def test_what_was_pinned_and_grouped_is_shown(opened, tmp_path):
    one, two, *_ = ids("feature")
    path = marked(tmp_path / "np.json", pinnedIds=[one, "9_9_9"], supernodes=[["a b", two]])
    output = run(path, "--json", "out.json").stdout
    for said in ("pinned    1 node\n", "1 supernode: a b\n", "missing   1 pinned or grouped node"):
        assert said in output
    document = json.loads((tmp_path / "out.json").read_text())
    named = {node["node_id"]: node["clerp"] for node in document["nodes"]}
    assert (named[one], named[two]) == ("", "a b")
    where = f"np.json.html#pins={one}&groups=a%20b:{two}&show=subgraph"
    assert opened[0].endswith(where)
    path = marked(tmp_path / "np.json", pinnedIds=[one])
    run(path)
    assert opened[1].endswith(f"np.json.html#pins={one}&tab=pinned")


def test_supernodes_become_nodes_where_that_is_asked(tmp_path):
    path = marked(tmp_path / "np.json", supernodes=[["group", *ids("feature")[:1]]])
    run(path, "--merge", "--no-open")
    assert "no supernodes" in run(THEIRS, "--merge", status=2).stderr


def test_labels_from_a_file(tmp_path):
    layer, feature, position = ids("feature")[0].split("_")
    labels = [{"layer": int(layer), "feature": int(feature), "label": "mine"},
              {"layer": 3, "feature": 12345, "label": "elsewhere"}]  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    output = run(THEIRS, "--labels", "labels.json", "--no-open", "--json", "out.json").stdout
    assert "1 feature named by labels.json" in output
    assert {note.label for note in Graph.read("out.json").notes.values()} == {"mine"}
    assert "no file" in run(THEIRS, "--labels", "gone.json", status=2).stderr


def test_json_on_standard_output_is_all_there_is(opened, tmp_path):
    document = json.loads(run(THEIRS, "--json", "-").output)
    assert len(document["links"]) == 264
    assert opened == [] and list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_hold_everything_says_so(monkeypatch):
    from circuit_tracer.view import drawing

    monkeypatch.setattr(drawing.fitted, "__defaults__", (30, 100))
    output = run(THEIRS, "--no-open").stdout
    said = "Only the strongest part is drawn: 30 of 38 nodes and 100 of 264 edges."
    assert said in output
    assert said in Path("oracle.json.html").read_text()


@pytest.mark.parametrize(
    "content, status, said",
    [
        (None, 2, "no file"),
        (b"", 1, "empty"),
        (b"{}", 1, "not a graph in Neuronpedia's schema"),
        (b"words", 1, "not a graph at all"),
        (b"PK\x03\x04", 1, "damaged or cut short"),
    ],
)
def test_files_that_are_no_graph(tmp_path, content, status, said):
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    result = run("f", status=status)
    assert said in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["f"])


def test_options_that_do_not_fit_the_file():
    assert "for a .pt" in run(THEIRS, "--tokenizer", "x", status=2).stderr
    assert "give -o a name" in run(THEIRS, "-o", "-", status=2).stderr
