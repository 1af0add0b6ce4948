"""What docs/scale.md says of sizes is its script's, and the script counts as the package does."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open

from circuit_tracer.bundled import model_dir
from circuit_tracer.estimate import estimate
from circuit_tracer.features.tally import ENTRY, Tally
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet
from tests.house.repository import ROOT

PROMPT = [2, 9, 21, 5, 33, 9, 8]


def loaded(name: str):
    """A script of docs/ as a module, as the scripts beside it import it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scale():
    yield loaded("scale")
    del sys.modules["scale"]


def always(k: int, features: int, width: int, layers: int) -> TranscoderSet:
    """Transcoders of which k features of every layer fire at every position."""
    bias = torch.where(torch.arange(features) < k, 1.0, -1.0).double()
    rows = torch.zeros(features, width, dtype=torch.float64)
    decoders = torch.randn(features, width, dtype=torch.float64, generator=torch.manual_seed(0))
    weights = LayerWeights(rows, bias, (decoders,), rows[0])
    return TranscoderSet("plt", "mlp.hook_in", "mlp.hook_out", layers, lambda _: weights, "always")


@pytest.mark.parametrize("k", [1, 3])
def test_edges_are_as_many_as_the_estimate_counts_and_operations_about(scale, monkeypatch, k):
    adapter = Adapter(tiny.model("llama"), "tiny", torch.float64)
    found = always(k, 5, adapter.d_model, adapter.n_layers)
    model = ReplacementModel(adapter, tiny.tokenizer(), found)
    forward = model.run(PROMPT)
    local, directions = model.localise(forward), choose(model, forward, max_logits=4)
    planned = estimate(local, directions, None, rate=None)
    monkeypatch.setattr(scale, "TARGETS", len(directions))
    shape = scale.Shape(
        "tiny", adapter.n_layers, adapter.d_model, adapter.heads, adapter.kv_heads,
        adapter.head_dim, 0, 0, 5, k,
    )  # fmt: skip
    operations, edges = shape.sweep(len(PROMPT))
    assert shape.active(len(PROMPT)) == planned.n_active == len(local.features)
    assert 0.4 * operations < planned.flops < 1.2 * operations
    assert 8 * edges == planned.result_bytes
    assert shape.folded * 2 == sum(
        part.nbytes for block in adapter.blocks for part in (block.value, block.output)
    )


def test_the_benchmark_case_is_foretold_from_its_shape(scale):
    lines = (ROOT / "kernels" / "bench" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    row = [row for row in rows if row["work"] == "attribution, complete"][-1]
    shape, ours = row["shapes"], {name: seen["p50"] for name, seen in row["ours"].items()}
    l0 = ours["active_features"] / shape["layers"] / (shape["tokens"] - 1)
    width, heads = shape["d_model"], shape["heads"]
    case = scale.Shape("case", shape["layers"], width, heads, heads, width // heads, 0, 0, 4096, l0)
    operations, edges = case.sweep(shape["tokens"])
    assert 0.5 * operations < 1e9 * ours["planned_gflop"] < 1.1 * operations
    assert 4 * edges / 2**20 == pytest.approx(ours["rows_mib"], rel=0.1)


def test_the_bundled_model_has_the_size_that_its_config_gives(scale):
    shape = scale.yours(model_dir() / "config.json", features=1024, l0=20)
    assert replace(shape, name="bundled") == scale.SHAPES[0]
    numbers = 0
    for path in model_dir().glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert shape.parameters == pytest.approx(numbers, rel=0.02)


def test_a_feature_s_counts_take_what_the_page_says(scale):
    tally = Tally(3, top=8, sample=24)
    tally.add_language()
    entries = np.zeros(120, ENTRY)
    entries["feature"], entries["piece"], entries["value"] = np.arange(120) % 3, np.arange(120), 1
    tally.add(entries, np.zeros(120, np.int64))
    held = sum(array.nbytes for array in vars(tally).values() if isinstance(array, np.ndarray))
    assert held == 3 * scale.tally(languages=1)


def test_sizes_and_times_are_said_in_three_digits(scale):
    assert [scale.size(n) for n in (0, 999, 1000, 4.19e6, 5e15)] == [
        "0 B", "999 B", "1 kB", "4.19 MB", "5 PB",
    ]  # fmt: skip
    assert [scale.lasting(s) for s in (0.0005, 1.374, 90, 7200, 3e6)] == [
        "0.5 ms", "1.4 s", "1.5 min", "2 h", "35 d",
    ]  # fmt: skip


def test_the_page_holds_the_tables_of_the_script(scale):
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.put(page) == page, "run: python docs/scale.py --page"


def test_the_picture_is_drawn_from_the_same_numbers(scale):
    draw = loaded("draw_scale")
    assert draw.PICTURE.read_text(encoding="utf-8") == draw.drawing(), (
        "run: python docs/draw_scale.py"
    )
