"""`circuit-tracer query`: every question to a graph of the bundled model, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.cli.main import main

PROMPT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def graph():
    return ct.trace(PROMPT, ct.load())


@pytest.fixture(scope="module")
def files(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    graph.save(folder / "dallas.safetensors")
    graph.to_json(folder / "dallas.json")
    return folder


@pytest.fixture(scope="module")
def circuit(graph):
    return graph.prune()


@pytest.fixture
def ask(files):
    def asked(*words, status=0, name="dallas.safetensors"):
        result = CliRunner().invoke(main, ["query", str(files / name), *map(str, words)])
        assert result.exit_code == status, result.output
        return result.output

    return asked


def answered(output):
    found = json.loads(output)
    assert found["prompt"] == PROMPT
    return found["answer"]


def test_a_file_alone_is_asked_for_its_summary(ask, circuit):
    assert ask() == ask("summary") == f"{circuit.summary()}\n"


def test_the_question_may_stand_before_the_file(files, ask):
    words = ["query", "paths", str(files / "dallas.safetensors"), "-k", "2"]
    assert CliRunner().invoke(main, words).output == ask("paths", "-k", 2)


def test_nodes(ask, circuit):
    found = answered(ask("nodes", "--kind", "feature", "--layer", 2, "--layer", 3, "--json", "-"))
    wanted = circuit.find("feature", layer=(2, 3))[:10]
    assert [node["id"] for node in found] == [node.id for node in wanted]
    assert ask("nodes", "--token", "Dallas", "--kind", "embedding", "-q") == "E_973_7\n"
    assert ask("nodes", "--text", "no such thing", "-q") == ""
    assert "0 nodes" in ask("nodes", "--text", "no such thing")


def test_paths(ask, circuit):
    found = answered(ask("paths", "--from", "Dallas", "--to", "Austin", "-k", 3, "--json", "-"))
    wanted = circuit.paths("Dallas", "Austin", k=3)
    assert [path["share"] for path in found["paths"]] == [path.share for path in wanted]
    assert found["flow"] == circuit.flow("Dallas", "Austin")
    said = ask("paths", "--from", "Dallas", "-k", 1)
    assert "all paths carry" in said and '" Dallas" →' in said and '→ " Austin"' in said


def test_edges(ask, circuit):
    found = answered(ask("inputs", "Austin", "-k", 4, "--json", "-"))
    assert [edge["source"] for edge in found] == [
        edge.source.id for edge in circuit.inputs("Austin", 4)
    ]
    assert ask("outputs", "Dallas", "-k", 2, "-q").split() == [
        edge.target.id for edge in circuit.outputs("Dallas", 2)
    ]


def test_what_lies_between(ask, circuit):
    found = answered(ask("between", "Dallas", "Austin", "--json", "-"))
    inside = circuit.between("Dallas", "Austin")
    assert [node["id"] for node in found["nodes"]] == [node.id for node in inside.nodes]
    assert found["flow"] == inside.flow() and len(found["edges"]) == len(inside.weights)
    assert "all that lies between E_973_7 and" in ask("between", "Dallas", "Austin")


def test_what_carries_and_what_is_passed(ask, circuit):
    found = answered(ask("carriers", "--from", "Dallas", "--position", -1, "--json", "-"))
    assert [c["id"] for c in found] == [c.node.id for c in circuit.carriers("Dallas", -1)]
    assert ask("bottlenecks", "-k", 2, "-q").split() == [n.id for n, _ in circuit.bottlenecks(2)]
    assert "no node is passed by every path" in ask("dominators")
    (feature,) = [node.id for node, _ in circuit.bottlenecks(1)]
    found = answered(ask("ancestors", "Austin", feature, "--json", "-"))
    assert [a["id"] for a in found] == [
        a.node.id for a in circuit.common_ancestors("Austin", feature)
    ]
    assert answered(ask("influence", feature, "--json", "-")) == circuit.influence_of(feature)


def test_cuts(ask, circuit):
    found = answered(ask("cut", "--from", "Dallas", "--json", "-"))
    cut = circuit.minimum_cut("Dallas")
    assert [node["id"] for node in found["nodes"]] == [node.id for node in cut.nodes]
    assert (found["share"], found["direct"]) == (cut.share, cut.direct)
    assert f"{len(cut.nodes)} nodes cut all" in ask("cut", "--from", "Dallas")


@pytest.mark.parametrize("by", ["layer", "position", "token"])
def test_contributions(ask, circuit, by):
    found = answered(ask("contributions", "--by", by, "--json", "-"))
    rows = circuit.contributions(by)
    assert [row["group"] for row in found] == [row.group for row in rows]
    assert sum(row["inputs"] for row in found) == pytest.approx(circuit.scores.replacement)
    assert len(ask("contributions", "--by", by).splitlines()) == len(rows) + 1


def test_supernodes(ask, circuit):
    found = answered(ask("supernodes", "--json", "-"))
    wanted = circuit.supernodes()
    assert [one["name"] for one in found["supernodes"]] == [one.name for one in wanted]
    scores = circuit.merged(wanted, rest=False).scores
    assert found["replacement"] == scores.replacement
    assert f"{len(wanted)} supernodes" in ask("supernodes")
    with_decoders = answered(ask("supernodes", "--with-decoders", "--json", "-"))
    model = ct.load()
    assert [one["name"] for one in with_decoders["supernodes"]] == [
        one.name for one in circuit.supernodes(model)
    ]


@pytest.mark.parametrize("suffix", ["graphml", "dot", "html"])
def test_exports(ask, tmp_path, suffix):
    path = tmp_path / f"circuit.{suffix}"
    assert ask("export", path) == f"{path}\n"
    assert path.stat().st_size > 10_000


def test_export_as_csv_says_both_names(ask, tmp_path):
    said = ask("export", tmp_path / "circuit.csv").splitlines()
    assert said == [str(tmp_path / f"circuit.{part}.csv") for part in ("nodes", "edges")]


def test_heads_and_scores_come_from_the_model_that_was_traced(ask, graph):
    from circuit_tracer.attention import heads, qk

    model = ct.load()
    found = answered(ask("heads", "Dallas", "Austin", "--json", "-"))
    assert found == [heads(model, graph, "E_973_7", graph.nodes[-1].id).to_plain()]
    path = answered(ask("heads", "Dallas", "L0#973@7", "Austin", "--json", "-"))
    assert [edge["source"] for edge in path] == ["E_973_7", "0_973_7"]
    place = ("--layer", 2, "--head", 1, "--query", -1, "--key", 7)
    assert answered(ask("qk", *place, "--json", "-")) == json.loads(
        json.dumps(qk(model, graph, 2, 1, -1, 7).to_plain())
    )
    assert "before softmax" in ask("qk", *place)


def test_nodes_that_were_pruned_away_still_have_heads(ask, graph, circuit):
    kept = {node.id for node in circuit.nodes}
    gone = next(n for n in graph.nodes if n.kind == "feature" and n.id not in kept)
    assert gone.id in ask("heads", gone.id, "Austin")


def test_another_model_is_refused(ask):
    said = ask("heads", "Dallas", "Austin", "--transcoders", "clt", status=2)
    assert "of its features are not active here; load the model and the transcoders" in said


def test_an_error_node_is_taken_apart(ask, graph):
    from circuit_tracer.error_nodes import explain_error

    model, other = ct.load(), ct.load(transcoders="clt")
    node = max((n for n in graph.nodes if n.kind == "error"), key=lambda n: n.influence)
    place = f"L{node.layer}@{node.position}"
    found = answered(ask("error", place, "--other", "clt", "-k", 4, "--json", "-"))
    wanted = explain_error(graph, model, node, [other.transcoders], k=4)
    assert found == json.loads(json.dumps(asdict(wanted)))
    said = ask("error", node.id, "--other", "clt", "-k", 4)
    assert said == ask("error", f"error {place}", "--other", "clt", "-k", 4)
    assert f"{wanted.size:.2f} of the MLP's output" in said
    assert f"bundled clt: its own error is {wanted.others[0].size:.2f}" in said


def test_weights_that_hold_for_every_prompt(ask, tmp_path):
    from circuit_tracer.global_weights import coactivation, global_weights, virtual_weight

    model, feature = ct.load(), (2, 949)
    pair = answered(ask("weights", "2.949", "L5#20", "--json", "-"))
    assert pair == {
        "source": [2, 949],
        "target": [5, 20],
        "weight": virtual_weight(model, feature, (5, 20)),
    }
    text = "The opposite of hot is cold."
    (tmp_path / "texts.txt").write_text(f"{text}\n", encoding="utf-8")
    words = ("weights", "--of", "2.949", "--side", "outputs", "-k", 3)
    found = answered(ask(*words, "--texts", tmp_path / "texts.txt", "--json", "-"))
    wanted = global_weights(model, feature, "outputs", 3, coactivation(model, feature, [text]))
    assert [one["target"] for one in found] == [list(one.target) for one in wanted]
    assert [one["twera"] for one in found] == [one.twera for one in wanted]
    assert found[0]["together"] > 0
    alone = global_weights(model, feature, "outputs", 1)[0]
    assert ask(*words, "-q").splitlines()[0] == f"L{alone.target[0]}#{alone.target[1]}"
    without = ask(*words)
    assert "--texts FILE ranks by which do" in without
    assert "TWERA" not in without and without.count("together") == 0


def test_json_graphs_are_asked_as_they_are(ask, circuit):
    found = answered(ask("nodes", "-k", 1000, "--json", "-", name="dallas.json"))
    assert {node["id"] for node in found} == {node.id for node in circuit.nodes}
    assert "E_973_7 →" in ask("heads", "Dallas", "Austin", name="dallas.json")


def test_thresholds_prune_on_load(ask, graph):
    found = answered(ask("nodes", "-k", 1000, "--node-threshold", 0.5, "--json", "-"))
    assert len(found) == len(graph.prune(0.5).nodes)
    most = answered(ask("nodes", "-k", 1000, "--max-nodes", 10, "--json", "-"))
    assert len(most) == len(graph.prune(max_nodes=10).nodes)


def test_answers_are_written_to_files_too(ask, tmp_path):
    said = ask("bottlenecks", "--json", tmp_path / "b.json")
    assert answered((tmp_path / "b.json").read_text())[0]["id"] in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["inputs", "Dalas"], "the nearest are 'Dallas'"),
        (["paths", "--from", "0_972_7"], "the nearest are 0_973_7"),
        (["paths", "--to", "L0#973@99"], "the prompt has 9 tokens: position 99 is outside"),
        (["carriers", "--position", "9"], "give 0 to 8"),
        (["nodes", "--kind", "neuron"], "kinds are feature, error, embedding, logit"),
        (["ancestors", "Dallas"], "two nodes or more"),
        (["cut", "--from", "Dallas", "--to", "Dallas"], "between a node and itself"),
        (["export", "circuit.gif"], "should end in .graphml, .dot, .csv, .html"),
        (["heads", "Dallas"], "a path has at least two nodes"),
        (["heads", "Dalas", "Austin"], "the nearest are 'Dallas'"),
        (["qk", "--layer", "99", "--head", "0", "--query", "1", "--key", "0"], "no layer 99"),
        (["error", "Dallas"], "is of kind 'embedding'"),
        (["error", "L99@4"], "there is no node '99_-1_4'"),
        (["error", "L3@99"], "position 99 is outside"),
        (["weights"], "give two features"),
        (["weights", "2.949"], "give two features"),
        (["weights", "2.949", "5.20", "--of", "2.949"], "give two features"),
        (["weights", "5.20", "2.949"], "must be in a lower layer"),
        (["weights", "2.949", "error"], "not a feature, like 3.417"),
        (["weights", "--of", "2.99999"], "layer 2 has no feature 99999"),
        (["pathz"], "did you mean paths"),
        (["influence"], "Missing argument"),
    ],
)
def test_wrong_words_are_answered_with_right_ones(ask, words, message):
    assert message in ask(*words, status=2)


def test_a_file_that_is_not_there(tmp_path):
    result = CliRunner().invoke(main, ["query", str(tmp_path / "gone.safetensors"), "paths"])
    assert result.exit_code == 2 and "gone.safetensors" in result.output


def test_help_lists_the_questions():
    said = CliRunner().invoke(main, ["query", "--help"]).output
    for name in ("paths", "carriers", "cut", "supernodes", "heads", "qk", "error", "weights"):
        assert f"  {name} " in said
    assert "--node-threshold" in CliRunner().invoke(main, ["query", "paths", "--help"]).output
