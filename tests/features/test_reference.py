"""Feature files of the reference tool, against a sample made by hand."""

from __future__ import annotations

import gzip
import json
import struct
import zlib

import pytest
from tiny import replacement

from circuit_tracer.errors import InputError
from circuit_tracer.features import build, open_store
from circuit_tracer.features.reference import (
    export_features,
    import_features,
    layer_and_feature,
)
from circuit_tracer.neuronpedia import feature_number

FIRST = (
    '{"index": 0, "examples_quantiles": [{"quantile_name": "Top activations", "examples": '
    '[{"tokens": ["<bos>", " pe", "tit \\u5c0f"], "tokens_acts_list": [0.0, 1.5, 12.0], '
    '"train_token_ind": 2, "is_repeated_datapoint": false, "note": [1, null]}]}], '
    '"top_logits": [" grand", " large"], "bottom_logits": [" the"], "act_min": 0, '
    '"act_max": 12.0, "quantile_values": [0.1, 1e-07], "histogram": [3, 1], '
    '"activation_frequency": 0.0025, "theirs": {"kept": true}}'
)
SECOND = '{"examples_quantiles":[],"index":4}'


@pytest.fixture
def sample(tmp_path):
    """Layer 0 has features 0 and 1, layer 2 feature 1 alone."""
    folder = tmp_path / "sample" / "features"
    folder.mkdir(parents=True)
    parts = {"0": [FIRST, SECOND], "2": [None, FIRST]}
    index = {}
    for layer, texts in parts.items():
        body, offsets = b"", [0]
        for text in texts:
            if text is not None:
                data = zlib.compress(text.encode())
                body += struct.pack("<I", len(data)) + data
            offsets.append(len(body))
        (folder / f"layer_{layer}.bin").write_bytes(body)
        index[layer] = {"filename": f"layer_{layer}.bin", "offsets": offsets}
    packed = gzip.compress(json.dumps(index).encode(), 6, mtime=0)
    (folder / "index.json.gz").write_bytes(packed)
    return tmp_path / "sample"


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_packed_features_come_back_byte_for_byte(sample, tmp_path):
    assert import_features(sample, tmp_path / "s") == 3
    export_features(open_store(tmp_path / "s"), tmp_path / "out")
    assert files(tmp_path / "out") == files(sample)


def test_loose_features_come_back_byte_for_byte(sample, tmp_path):
    import_features(sample, tmp_path / "s")
    export_features(open_store(tmp_path / "s"), tmp_path / "json", packed=False)
    found = files(tmp_path / "json")
    assert found == {
        "0.json": FIRST.encode(),
        f"{feature_number(0, 1)}.json": SECOND.encode(),
        f"{feature_number(2, 1)}.json": FIRST.encode(),
    }
    import_features(tmp_path / "json", tmp_path / "again")
    export_features(open_store(tmp_path / "again"), tmp_path / "out")
    assert files(tmp_path / "out") == files(sample)


def test_an_imported_feature_reads_like_any_other(sample, tmp_path):
    import_features(sample, tmp_path / "s")
    store = open_store(tmp_path / "s")
    feature = store.feature(0, 0)
    (group,) = feature.groups
    (example,) = group.examples
    assert (group.name, group.low, group.high) == ("Top activations", 12.0, 12.0)
    assert example.tokens == ("<bos>", " pe", "tit 小") and example.position == 2
    assert [token for token, _ in feature.raised] == [" grand", " large"]
    assert feature.density == 0.0025 and feature.largest == 12.0
    assert [(bar.low, bar.high, bar.count) for bar in feature.histogram] == [(0, 6, 3), (6, 12, 1)]
    assert feature.label.text == "~ tit 小 → grand, large"
    assert [row.name for row in store.search("GRAND")] == ["L0#0", "L2#1"]
    assert store.feature(0, 1).groups == ()


def test_our_features_survive_the_journey(tmp_path):
    texts = ["w5 w9 w21", "w30 w9 w7 w6", "w8 w8 w33"]
    build(replacement(), texts, tmp_path / "ours")
    ours = open_store(tmp_path / "ours")
    export_features(ours, tmp_path / "packed")
    import_features(tmp_path / "packed", tmp_path / "theirs")
    theirs = open_store(tmp_path / "theirs")
    assert len(ours) == len(theirs) == 60
    for row in ours:
        mine, other = ours.feature(row.layer, row.id), theirs.feature(row.layer, row.id)
        assert [(g.name, [(e.tokens, e.activations, e.position) for e in g.examples])
                for g in mine.groups] == [
            (g.name, [(e.tokens, e.activations, e.position) for e in g.examples])
            for g in other.groups
        ]  # fmt: skip
        assert [t for t, _ in mine.raised] == [t for t, _ in other.raised]
        assert mine.density == other.density


def test_cantor_numbers_are_undone():
    for layer in range(40):
        for feature in (0, 1, 47, 16383, 10**8):
            assert layer_and_feature(feature_number(layer, feature)) == (layer, feature)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "layer_0.bin").write_bytes(b"\x01"), "not in the file"),
        (lambda f: (f / "layer_0.bin").unlink(), "cannot read"),
        (lambda f: (f / "index.json.gz").write_bytes(b"no gzip"), "no index"),
        (lambda f: (f / "index.json.gz").write_bytes(gzip.compress(b"[]")), "no index"),
        (lambda f: _index(f, {"0": {"filename": "../secret", "offsets": [0, 1]}}), "beside"),
        (lambda f: _index(f, {"0": {"filename": "layer_0.bin"}}), "no index"),
        (lambda f: _index(f, {"0": {"filename": "layer_0.bin", "offsets": [4, 2]}}), "not in"),
        (lambda f: _index(f, {"0": {"filename": "layer_0.bin", "offsets": [0, 9]}}), "says"),
        (lambda f: _feature(f, b'{"index": 1}'), "no feature file: examples_quantiles"),
        (lambda f: _feature(f, b"\xff"), "damaged"),
        (lambda f: _feature(f, FIRST.replace("[0.0, 1.5, ", "[").encode()), "3 tokens and 1"),
        (lambda f: _feature(f, FIRST.replace("12.0]", "NaN]").encode()), "no feature file"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_written(sample, tmp_path, change, message):
    change(sample / "features")
    with pytest.raises(InputError, match=message):
        import_features(sample, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def _index(folder, value):
    (folder / "index.json.gz").write_bytes(gzip.compress(json.dumps(value).encode()))


def _feature(folder, text):
    data = zlib.compress(text)
    (folder / "layer_0.bin").write_bytes(struct.pack("<I", len(data)) + data)
    _index(folder, {"0": {"filename": "layer_0.bin", "offsets": [0, len(data) + 4]}})


def test_a_feature_that_unpacks_without_end_is_refused(sample, tmp_path, monkeypatch):
    monkeypatch.setattr("circuit_tracer.features.reference.MOST", 1000)
    _feature(sample / "features", b" " * 5000)
    with pytest.raises(InputError, match="unpacks to more"):
        import_features(sample, tmp_path / "s")


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds neither"):
        import_features(tmp_path, tmp_path / "s")
