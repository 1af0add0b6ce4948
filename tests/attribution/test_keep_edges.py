"""Traces that store the strongest edges of each row: the same trace, in less memory."""

from __future__ import annotations

import pytest
import tiny
import torch
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer import memory
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import InputError, MemoryBudgetError
from circuit_tracer.estimate import _needs, rehearse
from circuit_tracer.keeping import SHARES
from circuit_tracer.targets import choose
from circuit_tracer.tracing import estimate_trace


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("gemma2", kind="clt", activation="jump_relu")


@pytest.fixture(scope="module")
def traced(model):
    forward = model.run(tiny.PROMPT)
    return model.localise(forward), choose(model, forward, max_logits=3)


@pytest.mark.parametrize("limit", [None, 12])
@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_the_same_rows_without_their_weakest_edges(traced, limit, keep):
    whole = attribute(*traced, limit, keep_edges=1.0)
    less = attribute(*traced, limit, keep_edges=keep)
    assert torch.equal(less.rows, whole.rows)  # the same features were chosen
    dense, kept = whole.dense(), less.dense()
    assert torch.equal(kept, dense * (kept != 0))
    share = kept.abs().sum(1) / dense.abs().sum(1)
    assert float(share[whole.rows].min()) >= keep - 1e-12
    assert less.residual.abs().max() < 1e-12
    assert (less.keep, whole.keep) == (keep, 1.0)
    stored, all_of_it = (sum(block.nbytes for block in rows.blocks) for rows in (less, whole))
    assert stored < all_of_it or keep > 0.9  # a few nodes do not pay for the sums beside them


def test_everything_is_kept_where_it_fits_bit_for_bit(traced):
    named, auto = (attribute(*traced, None, keep_edges=keep) for keep in (1.0, "auto"))
    assert auto.keep == 1.0
    for one, other in zip(named.blocks, auto.blocks, strict=True):
        assert torch.equal(one.values, other.values)


def spare_for(plan, limit, keep):
    return _needs(plan.estimate(limit, None, keep)) + 1


def test_auto_gives_up_weak_edges_before_features(monkeypatch):
    model = tiny.replacement("llama", kind="plt")
    forward = model.run(tiny.PROMPT * 3)
    local, directions = model.localise(forward), choose(model, forward)
    plan = rehearse(local, directions)
    sizes = {share: spare_for(plan, None, share) for share in SHARES}
    falling = [share for share in SHARES if sizes[share] < sizes[1.0]]
    assert falling, sizes
    monkeypatch.setattr(memory, "free", lambda device: sizes[falling[-1]])
    keep = plan.share(len(local.features), "auto")
    assert keep in falling
    assert plan.resolve("auto", "auto") == len(local.features)
    assert attribute(local, directions, None).keep == keep
    with pytest.raises(MemoryBudgetError, match="--max-features"):
        attribute(local, directions, None, keep_edges=1.0)
    said = str(plan.estimate(None, None, keep))
    assert f"the strongest edges that hold {keep} of it" in said
    monkeypatch.setattr(memory, "free", lambda device: 10)
    with pytest.raises(MemoryBudgetError):
        attribute(local, directions, None)


@pytest.mark.parametrize("keep", [0.95, 0.8])
def test_the_bytes_of_stored_edges_are_foretold(model, keep):
    forward = model.run(tiny.PROMPT * 4)
    local, directions = model.localise(forward), choose(model, forward)
    planned = rehearse(local, directions).estimate(None, None, keep)
    made = attribute(local, directions, None, keep_edges=keep)
    stored = sum(block.nbytes for block in made.blocks)
    assert planned.keep == keep
    assert planned.result_bytes == pytest.approx(stored, rel=0.15)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), "some", None])
def test_what_is_no_share_is_refused(model, traced, keep):
    for call in (
        lambda: ct.trace(tiny.PROMPT, model, keep_edges=keep),
        lambda: estimate_trace(tiny.PROMPT, model, keep_edges=keep),
        lambda: attribute(*traced, keep_edges=keep),
    ):
        with pytest.raises(InputError, match="keep_edges"):
            call()


def test_a_trace_says_what_it_stored(model):
    graph = ct.trace(tiny.PROMPT, model, keep_edges=0.9)
    assert graph.edges.keep == 0.9
    assert graph.provenance.settings["keep_edges"] == 0.9
    assert graph.closure_error < 1e-12
    assert 0 < graph.scores.pruned_share < 0.5
    assert graph.prune().graph_scores == graph.scores


@pytest.mark.parametrize("keep", ["0", "1.1", "most"])
def test_the_command_line_refuses_what_is_no_share(keep):
    from circuit_tracer.cli.trace import trace

    found = CliRunner().invoke(trace, ["a prompt", "--keep-edges", keep])
    assert found.exit_code == 2
    assert "neither a share, above 0 and at most 1, nor auto" in " ".join(found.output.split())
