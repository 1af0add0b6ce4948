"""Edge rows gathered from a decoder table, in both forms, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.both_forms import (
    DEVICE,
    FORMS,
    ON_A_GPU,
    TOLERANCE,
    close,
    form,
    framed,
    offsets,
    seeded,
)

# positions, d_model, targets, features of a layer, active features by position, rows beside
SHAPES = {
    "one": (1, 1, 1, 1, [1], 1),
    "odd": (3, 37, 5, 11, [7, 1, 12], 1),
    "ragged": (4, 40, 33, 50, [0, 35, 3, 64], 3),
    "nothing active": (3, 16, 4, 5, [0, 0, 0], 2),
    "nothing at all": (2, 16, 3, 5, [0, 0], 0),
    "no targets": (2, 16, 0, 5, [3, 4], 1),
    "nothing beside": (2, 70, 40, 9, [33, 32], 0),
}


def inputs(shape, dtype=torch.float32, table_dtype=None):
    positions, width, targets, features, counts, rows = SHAPES[shape]
    starts = offsets(counts)
    tensors = dict(
        gradient=seeded(positions, width, targets, seed=1, dtype=dtype),
        table=seeded(features, width, seed=2, dtype=table_dtype or dtype),
        ids=torch.randint(features, (starts[-1],), generator=torch.Generator().manual_seed(3)),
        activations=seeded(starts[-1], seed=4, dtype=dtype).abs(),
        out=seeded(starts[-1], targets, seed=5, dtype=torch.promote_types(dtype, torch.float32)),
        beside=seeded(positions, rows, width, seed=6, dtype=dtype),
        beside_out=seeded(
            positions, rows, targets, seed=7, dtype=torch.promote_types(dtype, torch.float32)
        ),
        sums=seeded(targets, seed=8, dtype=torch.promote_types(dtype, torch.float32)),
    )
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()} | {"starts": starts}


def definition(given, counted):
    """(out, beside_out, sums) as the docstring has them, one edge after another, in float64."""
    wide = {n: t.double().cpu() for n, t in given.items() if n not in ("starts", "ids")}
    out, beside_out, sums = wide["out"].clone(), wide["beside_out"].clone(), wide["sums"].clone()
    for position, gradient in enumerate(wide["gradient"]):
        for row in range(given["starts"][position], given["starts"][position + 1]):
            vector = wide["table"][int(given["ids"][row])] * wide["activations"][row]
            out[row] += vector @ gradient
            sums += out[row].abs()
        for number in range(wide["beside"].shape[1]):
            beside_out[position, number] += wide["beside"][position, number] @ gradient
            if number < counted:
                sums += beside_out[position, number].abs()
    return out, beside_out, sums


def compare(kernel, given, dtype, counted=1, **options):
    truth = definition(given, counted)
    kernel(**given, counted=counted, **options)
    for found, wanted in zip(
        (given["out"], given["beside_out"], given["sums"]), truth, strict=True
    ):
        close(found.cpu(), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_definition(shape, which):
    compare(form("gathered_edge_rows", which), inputs(shape), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, ON_A_GPU])
def test_other_dtypes_in_triton(dtype):
    compare(form("gathered_edge_rows", "triton"), inputs("ragged", dtype), dtype)


@pytest.mark.gpu
def test_tf32_is_close_enough_on_a_gpu():
    kernel = form("gathered_edge_rows", "triton")
    compare(kernel, inputs("ragged"), torch.bfloat16, exact=False)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_table_may_be_stored_in_less(stored, which):
    """Rows are converted to the gradient's dtype as they are read."""
    compare(form("gathered_edge_rows", which), inputs("odd", table_dtype=stored), torch.float32)


@pytest.mark.parametrize("which", FORMS)
def test_it_can_be_all_there_is_to_pass(which):
    """Without rows beside and without sums it is the product alone."""
    given = inputs("ragged")
    truth, _, _ = definition(given, 0)
    kernel = form("gathered_edge_rows", which)
    kernel(*(given[n] for n in ("gradient", "table", "ids", "activations", "starts", "out")))
    close(given["out"].cpu(), truth, 1e-5)


def test_it_equals_edge_rows_of_the_vectors_laid_out():
    given = inputs("ragged")
    vectors = given["table"][given["ids"]] * given["activations"][:, None]
    for which in FORMS:
        laid_out = given["out"].clone()
        form("edge_rows", which)(given["gradient"], vectors, given["starts"], laid_out)
        gathered = given["out"].clone()
        form("gathered_edge_rows", which)(**{**given, "out": gathered, "sums": None})
        torch.testing.assert_close(gathered, laid_out, atol=1e-4, rtol=0)


@pytest.mark.parametrize("which", FORMS)
def test_what_lies_around_the_outputs_is_not_touched(which):
    given = inputs("ragged")
    out, beside_out, _ = definition(given, 1)
    buffers = {}
    for name in ("out", "beside_out", "gradient"):
        buffers[name], given[name] = framed(given[name])
    form("gathered_edge_rows", which)(**given, counted=1)
    for name, truth in (("out", out), ("beside_out", beside_out)):
        close(given[name].cpu(), truth, 1e-5)
        assert buffers[name].isnan().sum() == buffers[name].numel() - given[name].numel()


def test_twice_the_same_is_the_same_bits():
    found = []
    for _ in range(2):
        given = inputs("ragged")
        form("gathered_edge_rows", "triton")(**given)
        found.append((given["out"], given["beside_out"], given["sums"]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize(
    "name", ["starts", "table", "ids", "activations", "out", "beside", "beside_out", "sums"]
)
def test_shapes_that_do_not_belong_together(name, which):
    given = inputs("odd")
    given[name] = given[name][:-1] if name != "table" else given[name][:, :-1]
    with pytest.raises(ValueError, match=f"{name} must"):
        form("gathered_edge_rows", which)(**given)
    with pytest.raises(ValueError, match="come together"):
        form("gathered_edge_rows", which)(**{**inputs("odd"), "beside": None})
