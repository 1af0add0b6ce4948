"""What a run is said to take, and the runs that are refused before they start."""

from __future__ import annotations

import math
import re

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import circuit_tracer as ct
from circuit_tracer import memory
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import MemoryBudgetError
from circuit_tracer.estimate import _needs, _spread, estimate, rehearse
from circuit_tracer.rows import packed
from circuit_tracer.targets import choose


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("gemma2", kind="clt", activation="jump_relu")


@pytest.fixture(scope="module")
def traced(model):
    forward = model.run(tiny.PROMPT)
    return model.localise(forward), choose(model, forward, max_logits=3)


@pytest.mark.parametrize("limit", [None, 0, 5, 20])
def test_rows_and_their_bytes_are_counted_before_they_are_made(traced, limit):
    local, directions = traced
    planned = estimate(local, directions, limit, rate=None)
    made = attribute(local, directions, limit)
    stored = sum(block.values.nbytes for block in made.blocks)
    assert planned.n_targets == len(made.rows)
    assert planned.result_bytes == pytest.approx(stored, rel=0.0 if limit in (None, 0) else 0.3)
    assert planned.peak_bytes > planned.held_bytes + planned.result_bytes
    assert planned.seconds == 0.0


def test_more_rows_take_longer_and_need_more(traced):
    local, directions = traced
    plan = rehearse(local, directions)
    sizes = [plan.estimate(limit, rate=None) for limit in (0, 3, 12, None)]
    for less, more in zip(sizes, sizes[1:], strict=False):
        assert less.flops < more.flops
        assert less.result_bytes < more.result_bytes
        assert less.peak_bytes <= more.peak_bytes
    assert plan.estimate().seconds > plan.started > 0


def in_place(_into, a, b, *_, out_shape=None, **__):
    return 2 * math.prod(a) * b[-1]


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_operations_are_about_those_of_the_products_that_are_made(kind):
    model = tiny.replacement("llama", kind=kind, layers=6, features=80)
    forward = model.run(tiny.PROMPT * 2)
    local, directions = model.localise(forward), choose(model, forward, max_logits=3)
    planned = estimate(local, directions, rate=None).flops
    aten = torch.ops.aten
    inside = {aten.addmm_: in_place, aten.baddbmm_: in_place}
    with FlopCounterMode(display=False, custom_mapping=inside) as counted:
        attribute(local, directions, None)
    assert 0.8 < planned / counted.get_total_flops() < 1.05


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1))
def test_the_number_of_features_offered_fits_and_one_more_does_not(traced, share):
    local, directions = traced
    plan = rehearse(local, directions)

    def needs(limit):
        return _needs(plan.estimate(limit, rate=None))

    active = len(local.features)
    spare = needs(0) + share * (needs(active) - needs(0)) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free", lambda device: spare)
        with pytest.raises(MemoryBudgetError) as refused:
            plan.check_memory(active)
        offered = re.search(r"--max-features (\d+) fits", str(refused.value))
        if offered is None:
            assert needs(1) > spare and "--offload" in str(refused.value)
            return
        limit = int(offered[1])
        plan.check_memory(limit)
        assert needs(limit) <= spare < needs(limit + 1)


def test_automatic_limits_fit_into_memory_too(traced, monkeypatch):
    local, directions = traced
    plan = rehearse(local, directions)
    spare = _needs(plan.estimate(15, rate=None))
    monkeypatch.setattr(memory, "free", lambda device: spare)
    limit = plan.resolve("auto")
    assert 1 <= limit < len(local.features)
    plan.check_memory(limit)


def test_a_trace_that_would_not_fit_is_refused_with_a_setting_that_does(model, monkeypatch):
    local, directions = (lambda f: (model.localise(f), choose(model, f)))(model.run(tiny.PROMPT))
    spare = _needs(estimate(local, directions, 30, rate=None))
    monkeypatch.setattr(memory, "check_forward", lambda adapter, positions: None)
    monkeypatch.setattr(memory, "free", lambda device: spare)
    monkeypatch.setattr("circuit_tracer.replacement.check_forward", lambda adapter, n: None)
    with pytest.raises(MemoryBudgetError, match=r"--max-features \d+ fits") as refused:
        ct.trace(tiny.PROMPT, model, max_features=None)
    limit = int(re.search(r"--max-features (\d+)", str(refused.value))[1])
    assert len(ct.trace(tiny.PROMPT, model, max_features=limit).edges.rows) > limit


def test_a_prompt_too_long_for_its_patterns_is_refused_before_it_is_run(model, monkeypatch):
    longest = 4
    monkeypatch.setattr(memory, "free", lambda device: memory.forward(model.adapter, longest))
    monkeypatch.setattr(
        model.adapter.model, "forward", lambda **_: pytest.fail("the model was run")
    )
    with pytest.raises(MemoryBudgetError, match=f"{longest} tokens fit.*--offload"):
        model.run(tiny.PROMPT)


def test_a_control_group_leaves_less_than_the_machine_has(tmp_path, monkeypatch):
    names = [tmp_path / name for name in ("max", "current", "stat")]
    for name, text in zip(names, ("5000\n", "4000\n", "anon 1\ninactive_file 300\n"), strict=True):
        name.write_text(text)
    monkeypatch.setattr(memory, "GROUPS", (tuple(map(str, names)), ("none", "none", "none")))
    assert memory.free(torch.device("cpu")) == 1300
    names[0].write_text("max\n")
    assert memory.free(torch.device("cpu")) > 1300


def test_storage_that_tensors_share_counts_once():
    whole = torch.zeros(10, dtype=torch.float64)
    assert memory.tensors([whole, whole[2:], {"a": (whole, [torch.zeros(3)])}, "text"]) == 92


def test_a_forward_pass_taken_over_gives_the_same_rows_and_holds_its_patterns_once(model):
    forward, again = model.run(tiny.PROMPT), model.run(tiny.PROMPT)
    directions = choose(model, forward)
    kept, owned = model.localise(forward), model.localise(again, owned=True)
    assert memory.held(owned) < memory.held(kept)
    assert torch.equal(attribute(kept, directions).dense(), attribute(owned, directions).dense())


@given(
    cells=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=12).map(sorted),
    enough=st.integers(1, 60),
    more=st.integers(0, 60),
)
def test_chunks_hold_every_target_once_and_whole_positions_where_they_fit(cells, enough, more):
    most = enough + more
    chunks = list(packed(cells, enough, most))
    counts = [count for _, count in cells]
    seen = [(n, k) for chunk in chunks for n, first, stop in chunk for k in range(first, stop)]
    assert seen == [(n, k) for n, count in enumerate(counts) for k in range(count)]
    sizes = [sum(stop - first for _, first, stop in chunk) for chunk in chunks]
    assert all(0 < size <= most for size in sizes)
    whole = list(packed(cells, enough, 10**9))
    for chunk, after in zip(whole, whole[1:], strict=False):
        assert cells[chunk[-1][0]][0] < cells[after[0][0]][0]
        assert sum(stop - first for _, first, stop in chunk) >= enough


@pytest.mark.parametrize("family", ["gemma2", "llama", "phi3"])
def test_weights_folded_on_first_use_are_foreseen(family):
    adapter = tiny.replacement(family).adapter
    own = {weight.data_ptr() for weight in adapter.model.parameters()}
    folded = [part for block in adapter.blocks for part in (block.value, block.output)]
    made = sum(part.nbytes for part in folded if part.data_ptr() not in own)
    assert memory.folded(adapter) == made
    assert (made < sum(part.nbytes for part in folded)) == (family != "gemma2")


def test_sizes_are_said_in_words_that_show_them():
    assert memory.said(3.5 * 2**20) == "3.5 MiB"
    assert memory.said(2**33) == "8.00 GiB"


@given(count=st.integers(1, 64))
def test_trials_are_spread_over_a_run_however_few_there_are(count):
    marks = sorted(_spread(count))
    assert len(set(marks)) == count
    gaps = [b - a for a, b in zip([0.0, *marks], [*marks, 1.0], strict=True)]
    assert min(gaps) > 0 and max(gaps) <= 2 / count


def test_estimating_stops_early(traced, monkeypatch):
    local, directions = traced
    plan = rehearse(local, directions)
    tried = []
    monkeypatch.setattr(plan, "_seconds", lambda chunk: tried.append(chunk) or 1.0)
    plan.estimate()
    assert len(tried) == 1
