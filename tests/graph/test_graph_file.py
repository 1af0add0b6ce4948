"""One file, read back bit for bit, and nothing but that believed."""

from __future__ import annotations

import contextlib
import json
import pickle
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from circuit_tracer import graph_file
from circuit_tracer.errors import CircuitTracerError, GraphFileError, InputError
from circuit_tracer.graph import FeatureNote, Graph, Target


def same(one: Graph, other: Graph) -> bool:
    def bits(tensor):
        return tensor.contiguous().view(torch.uint8)

    def equal(a, b):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))

    return (
        all(
            getattr(one, name) == getattr(other, name)
            for name in ("targets", "tokens", "token_ids", "provenance", "notes")
        )
        and all(
            equal(getattr(one.edges, name), getattr(other.edges, name)) for name in graph_file.TERMS
        )
        and equal(one.activations, other.activations)
        and equal(one.index.features, other.index.features)
        and (one.index.n_layers, one.index.n_positions)
        == (other.index.n_layers, other.index.n_positions)
        and len(one.edges.blocks) == len(other.edges.blocks)
        and all(
            (a.layer, a.position) == (b.layer, b.position)
            and equal(a.rows, b.rows)
            and equal(a.values, b.values)
            for a, b in zip(one.edges.blocks, other.edges.blocks, strict=True)
        )
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.text(max_size=5),
    st.integers(0, 20),
)
def test_load_of_save_is_identity(toy, tmp_path_factory, seed, dtype, text, n_features):
    graph = toy(seed, n_features=n_features, expanded=0.7, dtype=dtype)
    graph.notes[1, 4] = FeatureNote(text, ((text, 0.1),), (("b", -1.5),))
    graph = replace(graph, tokens=(text, *graph.tokens[1:]))
    path = tmp_path_factory.mktemp("g") / "g.safetensors"
    graph.save(path)
    assert same(Graph.load(path), graph)


def with_direction(graph, *vector):
    """The graph, where its last target is a direction."""
    *others, last = graph.targets
    directed = Target("mine", None, last.position, None, last.weight, direction=vector)
    return replace(graph, targets=(*others, directed))


def test_directions_are_kept_to_the_last_bit_and_the_header_has_no_numbers_of_them(toy, tmp_path):
    graph = with_direction(toy(2), 0.1, -1e-300, 3.0)
    graph.save(tmp_path / "g")
    assert same(Graph.load(tmp_path / "g"), graph)
    tensors = load_file(tmp_path / "g")
    assert tensors["directions"].tolist() == [[0.1, -1e-300, 3.0]]
    assert tensors["directed"].tolist() == [len(graph.targets) - 1]
    plain = json.loads(tensors["header"].numpy().tobytes())["targets"][-1]
    assert plain.keys() == {field.name for field in fields(Target)} - {"direction"}


def test_a_file_without_its_directions_is_read_as_older_ones_are(toy, tmp_path):
    graph, path = with_direction(toy(2), 1.0, 2.0), tmp_path / "g"
    graph.save(path)
    tensors = load_file(path)
    del tensors["directed"], tensors["directions"]
    save_file(tensors, path, {"format": "circuit-graph", "version": "1"})
    *others, last = graph.targets
    assert Graph.load(path).targets == (*others, replace(last, direction=None))
    toy(2).save(path)
    assert not {"directed", "directions"} & load_file(path).keys()


def test_a_graph_from_json_can_be_saved(reference_json, tmp_path):
    graph = Graph.from_json(reference_json)
    graph.save(tmp_path / "g")
    assert same(Graph.load(tmp_path / "g"), graph)


@pytest.fixture
def saved(toy, tmp_path):
    path = tmp_path / "graph.safetensors"
    toy(1).save(path)
    return path


def test_cut_short(saved):
    whole = saved.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        with pytest.raises(GraphFileError, match=r"graph\.safetensors"):
            Graph.load(saved)


def test_no_pickle(saved):
    for protocol in (2, 5):
        saved.write_bytes(pickle.dumps({"adjacency": 1}, protocol))
        with pytest.raises(GraphFileError, match="pickle"):
            Graph.load(saved)
    torch.save({"a": torch.zeros(1)}, saved)
    with pytest.raises(GraphFileError, match="pickle"):
        Graph.load(saved)


def test_json_is_pointed_to_from_json(saved, toy):
    toy(1).to_json(saved)
    with pytest.raises(GraphFileError, match="from_json"):
        Graph.load(saved)


def test_missing(tmp_path):
    with pytest.raises(InputError, match="no file"):
        Graph.load(tmp_path / "none")


def test_other_safetensors_and_newer_versions(saved):
    tensors = load_file(saved)
    save_file(tensors, saved)
    with pytest.raises(GraphFileError, match="not a graph"):
        Graph.load(saved)
    save_file(tensors, saved, {"format": "circuit-graph", "version": "3"})
    with pytest.raises(GraphFileError, match=r"version 3.*newer"):
        Graph.load(saved)


def header(tensors, **changes):
    said = json.loads(tensors["header"].numpy().tobytes()) | changes
    said = {name: value for name, value in said.items() if value is not ...}
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)


def put(name, place, value):
    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][place] = value

    return change


def cut(name):
    return lambda tensors: tensors.update({name: tensors[name][:-1].clone()})


WRONG = {
    "nan edge": put("values", 0, torch.nan),
    "infinite bias": put("bias", 3, torch.inf),
    "one unknown value": put("value", 0, torch.nan),
    "infinite activation": put("activations", 0, torch.inf),
    "feature outside": put("features", (0, 0), 99),
    "negative feature": put("features", (0, 2), -1),
    "features out of order": lambda t: t.update(features=t["features"].flip(0).contiguous()),
    "feature twice": lambda t: t["features"].__setitem__(1, t["features"][0]),
    "target outside": put("target_positions", 0, 99),
    "row outside": put("rows", 0, 10**6),
    "row of another block": put("rows", 0, 1),
    "block twice": lambda t: t["blocks"].__setitem__(1, t["blocks"][0]),
    "negative count": put("blocks", (0, 2), -3),
    "too few values": cut("values"),
    "too many values": lambda t: t.update(values=torch.cat([t["values"], t["values"][:1]])),
    "too few activations": cut("activations"),
    "too few terms": cut("ignored"),
    "no values": lambda t: t.pop("values"),
    "wrong kind": lambda t: t.update(rows=t["rows"].float()),
    "header not json": lambda t: t.update(header=t["header"][:-1].clone()),
    "fewer layers": lambda t: t.update(header=header(t, n_layers=2)),
    "layers in words": lambda t: t.update(header=header(t, n_layers="three")),
    "no targets": lambda t: t.update(header=header(t, targets=...)),
    "tokens missing": lambda t: t.update(header=header(t, tokens=[])),
    "unknown provenance": lambda t: t.update(header=header(t, provenance={"x": 1})),
    "notes of another shape": lambda t: t.update(header=header(t, notes=[[1]])),
}


@pytest.mark.parametrize("what", WRONG)
def test_contradictions_are_refused(saved, what):
    tensors = load_file(saved)
    WRONG[what](tensors)
    save_file(tensors, saved, {"format": "circuit-graph", "version": "1"})
    with pytest.raises(GraphFileError, match=r"graph\.safetensors is damaged"):
        Graph.load(saved)


NO_DIRECTIONS = {
    "of no target": put("directed", 0, 99),
    "of a token": put("directed", 0, 0),
    "not finite": put("directions", (0, 0), torch.nan),
    "fewer than said": cut("directions"),
    "alone": lambda t: t.pop("directed"),
    "missing": lambda t: t.pop("directions"),
    "of another kind": lambda t: t.update(directions=t["directions"].half()),
}


@pytest.mark.parametrize("what", NO_DIRECTIONS)
def test_directions_that_do_not_fit_are_refused(toy, tmp_path, what):
    path = tmp_path / "graph.safetensors"
    with_direction(toy(2), 1.0, 2.0).save(path)
    tensors = load_file(path)
    NO_DIRECTIONS[what](tensors)
    save_file(tensors, path, {"format": "circuit-graph", "version": "1"})
    with pytest.raises(GraphFileError, match=r"graph\.safetensors is damaged"):
        Graph.load(path)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=4))
def test_any_damage_is_found_or_harmless(toy, tmp_path_factory, place, junk):
    path = tmp_path_factory.mktemp("g") / "g.safetensors"
    toy(1, n_features=5).save(path)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place : place + len(junk)] = junk
    path.write_bytes(data)
    with contextlib.suppress(CircuitTracerError):
        Graph.load(path).prune().summary()


def test_settings_must_be_plain(toy, tmp_path):
    graph = toy()
    graph.provenance.settings["odd"] = object()
    with pytest.raises(InputError, match="plain JSON"):
        graph.save(tmp_path / "g")
    assert not list(tmp_path.iterdir())
