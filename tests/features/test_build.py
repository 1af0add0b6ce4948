"""A store holds what a brute-force pass finds, however the pass was cut up."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import replacement

from circuit_tracer.errors import InputError
from circuit_tracer.features import Detail, annotate, build, count, merge, open_store
from circuit_tracer.features.corpus import Document
from circuit_tracer.features.joining import join
from circuit_tracer.features.part import Part
from circuit_tracer.features.tally import BINS, bin_edges, bin_of, groups
from circuit_tracer.forward import run

DETAIL = Detail(top=4, intervals=2, each=2, random=3)


def texts(count: int = 40, seed: int = 3) -> list[Document]:
    """Random words in two languages; the first text is told twice."""
    draw = random.Random(seed)
    made = [
        Document(
            " ".join(f"w{draw.randrange(4, 40)}" for _ in range(draw.randrange(1, 12))),
            draw.choice(["fr", "en"]),
        )
        for _ in range(count - 1)
    ]
    return [*made, made[0]]


@pytest.fixture(scope="module", params=["plt", "clt"])
def model(request):
    return replacement(kind=request.param, activation="jump_relu")


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "all.sqlite"
    build(model, texts(), path, top=5, sample=6, detail=DETAIL)
    return open_store(path)


def contents(path) -> dict[str, list]:
    """Everything a database holds, in order."""
    with sqlite3.connect(path) as file:
        names = [n for (n,) in file.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        return {name: sorted(file.execute(f"SELECT * FROM {name}").fetchall()) for name in names}


def brute(model):
    """(layer, feature) → [(text, language, position, activation)], by a plain loop."""
    fired, positions = defaultdict(list), defaultdict(int)
    for document in texts():
        ids = model.tokenize(document.text)
        forward = run(model.adapter, model.transcoders, ids)
        positions[document.language] += len(ids) - 1
        for layer, x in enumerate(forward.mlp_inputs):
            pre = model.transcoders.pre_activations(layer, x)
            on = model.transcoders.layer(layer).activation.active(pre)
            for position in range(1, len(ids)):
                for feature in on[position].nonzero()[:, 0].tolist():
                    value = float(pre[position, feature])
                    cell = tuple(ids.tolist()), document.language, position, value
                    fired[layer, feature].append(cell)
    return fired, positions


def test_figures_equal_those_of_a_brute_force_pass(model, store):
    fired, positions = brute(model)
    assert store.about["positions"] == sum(positions.values())
    assert store.about["languages"] == dict(sorted(positions.items()))
    assert len(store) == 3 * 20
    for row in store:
        cells = fired[row.layer, row.id]
        values = [value for *_, value in cells]
        assert row.count == len(cells)
        assert row.density == len(cells) / sum(positions.values())
        assert row.largest == max(values, default=0.0)
        assert row.mean == pytest.approx(np.mean(values) if values else 0.0, abs=1e-11)
        feature = store.feature(row.layer, row.id)
        for bar in feature.histogram:
            assert bar.count == sum(bar.low <= value < bar.high for value in values)
        assert sum(bar.count for bar in feature.histogram) == len(values)
        for language, size in positions.items():
            spoken = sum(cell[1] == language for cell in cells)
            assert feature.spread.rates[language] == spoken / size


def test_top_examples_are_the_strongest_distinct_pieces(model, store):
    fired, _ = brute(model)
    for (layer, one), cells in fired.items():
        best = defaultdict(float)
        for ids, language, _, value in cells:
            best[ids, language] = max(best[ids, language], value)
        group = store.feature(layer, one).groups[0]
        assert group.name == "Top"
        found = [e.activations[e.position] for e in group.examples]
        wanted = sorted(best.values(), reverse=True)[: DETAIL.top]
        assert found == pytest.approx(wanted, rel=6e-3)  # three digits are kept
        assert found == sorted(found, reverse=True)


def test_examples_show_the_activation_of_every_token(model, store):
    fired, _ = brute(model)
    for (layer, one), cells in list(fired.items())[:10]:
        truth = {ids[: place + 1]: value for ids, _, place, value in cells}
        for group in store.feature(layer, one).groups:
            for example in group.examples:
                ids = tuple(model.tokenizer.convert_tokens_to_ids(list(example.tokens)))
                for position in range(1, len(ids)):
                    value = truth.get(ids[: position + 1], 0.0)  # later tokens do not matter
                    assert example.activations[position] == pytest.approx(value, rel=6e-3)


def test_features_are_silent_in_their_silent_texts(model, store):
    fired, _ = brute(model)
    active = {key: {cell[0] for cell in cells} for key, cells in fired.items()}
    seen = 0
    for row in store:
        for example in store.feature(row.layer, row.id).silent:
            ids = tuple(model.tokenizer.convert_tokens_to_ids(list(example.tokens)))
            assert ids not in active[row.layer, row.id] and not any(example.activations[1:])
            seen += 1
    assert seen > 20


def test_random_positives_fire_and_quantiles_descend(store):
    for row in store:
        found = store.feature(row.layer, row.id).groups
        assert bool(found) == (row.count > 0)
        intervals = [group for group in found if group.name.startswith("Interval")]
        for stronger, weaker in zip(intervals, intervals[1:], strict=False):
            assert stronger.low >= weaker.high
        for group in found:
            assert all(e.activations[e.position] != 0 for e in group.examples)


def test_the_sample_is_drawn_evenly_from_where_a_feature_fires(model, tmp_path):
    """Every place is as likely as any other: over many corpora, ranks in the sample are uniform."""
    shares = []
    for seed in range(8):
        part = count(model, texts(30, seed), tmp_path / f"{seed}.part", top=1, sample=4)
        fired = count(model, texts(30, seed), tmp_path / f"{seed}.all", top=1, sample=500)
        for few, every in zip(part.tallies, fired.tallies, strict=True):
            for some, whole in zip(groups(few.sampled, 20), groups(every.sampled, 20), strict=True):
                values = np.sort(whole["value"])
                if len(values) >= 20:
                    shares += (np.searchsorted(values, some["value"]) / len(values)).tolist()
    assert len(shares) > 200
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_merged_equal_one_build(model, store, tmp_path, shards):
    parts = [tmp_path / f"{k}.part" for k in range(shards)]
    for k, part in enumerate(parts):
        count(model, texts(), part, top=5, sample=6, shard=(k, shards))
    merge(model, parts[::-1], tmp_path / "merged.sqlite", DETAIL)
    assert contents(tmp_path / "merged.sqlite") == contents(store.path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "merged.sqlite", *parts])


@pytest.mark.parametrize("cut", [([0], [1], [2]), ([2, 0], [1])])
def test_stores_of_some_layers_joined_equal_one_build(model, store, tmp_path, cut):
    paths = [tmp_path / "".join(map(str, layers)) for layers in cut]
    for path, layers in zip(paths, cut, strict=True):
        build(model, texts(), path, top=5, sample=6, detail=DETAIL, layers=layers)
        assert open_store(path).layers == tuple(sorted(layers))
    join(paths[::-1], tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == store.path.read_bytes()


def test_shards_of_texts_and_of_layers_go_together(model, store, tmp_path):
    for layers in ([0, 1], [2]):
        parts = [tmp_path / f"{layers}{k}" for k in range(2)]
        for k, part in enumerate(parts):
            count(model, texts(), part, top=5, sample=6, shard=(k, 2), layers=layers)
        merge(model, parts, tmp_path / str(layers), DETAIL)
    join([tmp_path / "[0, 1]", tmp_path / "[2]"], tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == store.path.read_bytes()


def test_labels_are_joined_and_stores_that_do_not_fit_refused(model, tmp_path):
    from circuit_tracer.features.feature import Label

    for name, number, layers in (("a", 9, [0, 2]), ("b", 9, [1]), ("c", 8, [1]), ("d", 9, [2])):
        build(model, texts(number), tmp_path / name, layers=layers)
    open_store(tmp_path / "b").set_labels({(1, 3): Label("mine", "me", 0.5)})
    join([tmp_path / "a", tmp_path / "b"], tmp_path / "joined")
    assert open_store(tmp_path / "joined").given == {(1, 3): Label("mine", "me", 0.5)}
    with pytest.raises(InputError, match="its .* is .*, and not"):
        join([tmp_path / "a", tmp_path / "c"], tmp_path / "e")
    with pytest.raises(InputError, match="both hold layer 2"):
        join([tmp_path / "a", tmp_path / "d"], tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("after", [1, 7, 39])
def test_an_interrupted_build_that_goes_on_equals_an_uninterrupted_one(
    model, store, tmp_path, monkeypatch, after
):
    monkeypatch.setattr("circuit_tracer.features.building.SAVED", 0.0)
    path = tmp_path / "store.sqlite"

    def interrupted():
        for number, document in enumerate(texts()):
            if number == after:
                raise KeyboardInterrupt
            yield document

    with pytest.raises(KeyboardInterrupt):
        build(model, interrupted(), path, top=5, sample=6, detail=DETAIL)
    assert not path.exists()
    assert Part.open(tmp_path / "store.sqlite.part").done == after
    build(model, texts(), path, top=5, sample=6, detail=DETAIL)
    assert contents(path) == contents(store.path)
    assert [p.name for p in tmp_path.iterdir()] == ["store.sqlite"]


BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_build import DETAIL, texts
from tiny import replacement
from circuit_tracer.features import build, building
building.SAVED = 0.0
def slowly():
    for document in texts():
        time.sleep(0.05)
        yield document
build(replacement(kind="plt", activation="jump_relu"), slowly(), {path!r}, 5, 6, DETAIL)
"""


def test_a_build_that_was_killed_goes_on(model, store, tmp_path):
    """Killed for real, in the middle, while it writes as often as it can."""
    if model.transcoders.kind != "plt":
        pytest.skip("once is enough")
    folder = Path(__file__).parent
    path, part = tmp_path / "store.sqlite", tmp_path / "store.sqlite.part"
    script = BUILD.format(tests=str(folder), path=str(path))
    roots = [folder.parent.parent, folder.parent.parent / "kernels", folder.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, roots))}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        while process.poll() is None and not (part.exists() and _done(part) >= 3):
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not path.exists() and 3 <= Part.open(part).done < len(texts())
    build(model, texts(), path, top=5, sample=6, detail=DETAIL)
    assert path.read_bytes() == store.path.read_bytes()


def _done(part) -> int:
    try:
        return Part.open(part).done
    except InputError:
        return 0


def test_a_build_interrupted_while_describing_goes_on(model, store, tmp_path):
    path = tmp_path / "store.sqlite"

    def stop(_share, message):
        if message.startswith("examples"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, texts(), path, top=5, sample=6, detail=DETAIL, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["store.sqlite.part"]
    build(model, texts(), path, top=5, sample=6, detail=DETAIL)
    assert contents(path) == contents(store.path)


def test_building_twice_gives_the_same_bytes(model, store, tmp_path):
    build(model, texts(), tmp_path / "again.sqlite", top=5, sample=6, detail=DETAIL)
    assert (tmp_path / "again.sqlite").read_bytes() == store.path.read_bytes()


def test_other_texts_do_not_go_on_from_a_part(model, tmp_path):
    count(model, texts(20), tmp_path / "a.part")
    for other in (texts(20, seed=4), texts(19)[:10]):
        with pytest.raises(InputError, match="other texts"):
            count(model, other, tmp_path / "a.part")


def test_parts_that_do_not_go_together_are_refused(model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    count(model, texts(10), one)
    count(model, texts(10), two, sample=5)
    with pytest.raises(InputError, match="does not fit"):
        merge(model, [one, two], tmp_path / "out")
    with pytest.raises(InputError, match="another part holds"):
        merge(model, [one, one], tmp_path / "out")
    with pytest.raises(InputError, match="not a part"):
        merge(model, [tmp_path / "nothing"], tmp_path / "out")
    (tmp_path / "text").write_text("no database")
    with pytest.raises(InputError, match="not a part"):
        merge(model, [tmp_path / "text"], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "text"}


def test_memory_is_bounded_by_features_and_not_by_texts(model, tmp_path):
    sizes = []
    for number in (60, 180):
        part = count(model, texts(number), tmp_path / str(number), top=3, sample=4)
        sizes.append(sum(t.strongest.nbytes + t.sampled.nbytes for t in part.tallies))
        assert all(len(t.strongest) <= 3 * 20 and len(t.sampled) <= 4 * 20 for t in part.tallies)
        assert part.waiting() == 0
        assert len(list(part.pieces())) == len(part.needed())
    assert sizes[1] <= 1.2 * sizes[0]


def test_coactive_features_fire_at_the_drawn_places(model, store):
    fired, positions = brute(model)
    total = sum(positions.values())
    seen = 0
    for row in store:
        for kin in store.feature(row.layer, row.id).coactive:
            assert kin.layer < row.layer
            base = len(fired[kin.layer, kin.feature]) / total
            assert 0 < base < kin.share <= 1
            seen += 1
    assert seen


def test_coactivation_of_a_whole_sample_is_the_share_of_places_where_both_fire(model, tmp_path):
    """With every place drawn the share is exact."""
    build(model, texts()[:-1], tmp_path / "s", sample=1000, detail=Detail(coactive=60))
    store, places = open_store(tmp_path / "s"), defaultdict(set)
    for number, document in enumerate(texts()[:-1]):
        ids = model.tokenize(document.text)
        forward = run(model.adapter, model.transcoders, ids)
        for layer, x in enumerate(forward.mlp_inputs):
            cells, _ = model.transcoders.encode(layer, x)
            for position, feature in cells.tolist():
                if position:
                    places[layer, feature].add((number, position))
    for row in store:
        mine = places[row.layer, row.id]
        for kin in store.feature(row.layer, row.id).coactive:
            both = mine & places[kin.layer, kin.feature]
            assert kin.share == pytest.approx(len(both) / len(mine))


def test_similar_features_have_the_largest_cosines(model, store):
    layers = range(3)
    sums = torch.cat([sum(model.transcoders.layer(k).decoders) for k in layers]).float()
    unit = sums / sums.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    for row in store:
        kin = store.feature(row.layer, row.id).similar
        best = cosines[20 * row.layer + row.id].topk(5)
        assert [20 * one.layer + one.feature for one in kin] == best.indices.tolist()
        assert [one.share for one in kin] == pytest.approx(best.values.tolist(), abs=6e-4)


def test_a_build_of_nothing_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="no token"):
        build(model, [], tmp_path / "s")
    with pytest.raises(InputError, match="at least one"):
        build(model, texts(), tmp_path / "s", top=0)
    with pytest.raises(InputError, match="some of 0 to 2"):
        build(model, texts(), tmp_path / "s", layers=[3])


def test_annotate_names_the_features_of_a_graph_and_keeps_what_is_named(model, store):
    import circuit_tracer as ct
    from circuit_tracer.facts import FeatureNote

    graph = ct.trace([2, 9, 21, 5], model)
    first = graph.index.features[0]
    key = int(first[0]), int(first[2])
    graph.notes[key] = FeatureNote("mine")
    named = annotate(graph, store)
    assert named == len({(n.layer, n.feature) for n in graph.nodes if n.kind == "feature"}) - 1
    labels = {(n.layer, n.feature): n.label for n in graph.nodes if n.kind == "feature"}
    assert labels.pop(key) == "mine"
    for (layer, feature), label in labels.items():
        assert label == store.label(layer, feature).text


def test_bins_meet_and_hold_what_they_say():
    values = np.array([2.0 ** (k / 7) for k in range(-90, 90)] + [1.0, 2.0, 4.0, 0.5])
    for value, place in zip(values, bin_of(values), strict=True):
        low, high = bin_edges(int(place))
        assert low <= value * (1 + 1e-15) and value < high * (1 + 1e-15)
    assert bin_of(np.array([-3.0, 1e-30])).tolist() == [0, 0]
    assert bin_of(np.array([1e30])).tolist() == [BINS - 1]
    assert all(bin_edges(k)[1] == bin_edges(k + 1)[0] for k in range(BINS - 1))
