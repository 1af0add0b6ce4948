"""How far the transcoders' derivative is from the MLPs' own, layer by layer, on one prompt.

A reconstruction can be right about what an MLP says and wrong about why. A nudge v at the read site
moves the MLP's output by J v, and the reconstruction by W_dec (active · W_enc v) + W_skip v. Their
cosine, averaged over positions and nudges, is 1 where the transcoder computes as the MLP does.
Nudges are random, or along what features of lower layers write at the same position: the directions
that edges come by.

Of a cross-layer transcoder only features of the layer itself can answer a nudge there; what earlier
layers write ahead cannot, and counts against it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.func import jvp

from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.verify.subject import Subject

NUDGES, SEED = 8, 0


def jacobian_cosines(subject: Subject, layer: int) -> tuple[float | None, float | None]:
    """(random nudges, nudges along what lower features write); None where a layer has no
    transcoder, or no position any nudge."""
    if layer not in subject.model.transcoders.present:
        return None, None
    x = subject.forward.mlp_inputs[layer]
    draw = torch.Generator().manual_seed(SEED + layer)
    random = torch.randn(NUDGES, *x.shape, generator=draw).to(x)
    random = random * subject.kept.to(x)[:, None]
    return _cosine(subject, layer, random), _cosine(subject, layer, _written(subject, layer, draw))


def _cosine(
    subject: Subject, layer: int, nudges: Float[Tensor, "nudge position d_model"]
) -> float | None:
    """Mean cosine of the two answers over nudges that are not zero."""
    there = nudges.any(-1)
    if not bool(there.any()):
        return None
    x = subject.forward.mlp_inputs[layer]
    true, said = _true(subject, layer, x, nudges), _said(subject, layer, x, nudges)
    return float(torch.cosine_similarity(true, said, dim=-1)[there].mean())


def _written(
    subject: Subject, layer: int, draw: torch.Generator
) -> Float[Tensor, "nudge position d_model"]:
    """Of each position, what some features of lower layers write there, as the MLP reads it."""
    adapter, sets = subject.model.adapter, subject.model.transcoders
    nudges = subject.forward.mlp_inputs[layer].new_zeros(
        NUDGES, subject.graph.index.n_positions, adapter.d_model
    )
    below = subject.features[subject.features[:, 0] < layer]
    for place in range(nudges.shape[1]):
        here = below[below[:, 1] == place]
        picked = here[torch.randperm(len(here), generator=draw)[:NUDGES]]
        for number, (source, _, feature) in enumerate(picked.tolist()):
            row = sets.decoder_rows(source, source, torch.tensor([feature]), adapter.dtype)[0]
            post = adapter.blocks[source].post_mlp_norm if sets.write == "mlp.hook_out" else None
            row = row.to(nudges)
            nudges[number, place] = row if post is None else post.centre(row) * post.weight
    norm = adapter.blocks[layer].mlp_norm
    if norm is None or sets.read == "hook_resid_mid":
        return nudges
    nudges = norm.centre(nudges)
    return nudges * norm.weight if sets.read == "mlp.hook_in" else nudges


def _true(
    subject: Subject,
    layer: int,
    x: Float[Tensor, "position d_model"],
    nudges: Float[Tensor, "nudge position d_model"],
) -> Float[Tensor, "nudge position d_model"]:
    """What nudges at the read site do at the write site, by the model's own modules."""
    block, sets = subject.model.adapter.blocks[layer], subject.model.transcoders

    def through(site: Tensor) -> Tensor:
        norm = block.mlp_norm if sets.read != "mlp.hook_in" else None
        if norm is not None and sets.read == "ln2.hook_normalized":
            site = site * norm.weight + (0 if norm.bias is None else norm.bias)
        elif norm is not None:
            site = norm.module(site)
        output: Any = block.mlp(site)
        output = output[0] if isinstance(output, tuple) else output
        output = output.view_as(site)
        post = block.post_mlp_norm if sets.write == "hook_mlp_out" else None
        return output if post is None else post.module(output)

    weight = next(block.mlp.parameters())
    start = x.to(weight.device, weight.dtype).expand_as(nudges).contiguous()
    return jvp(through, (start,), (nudges.to(start),))[1].to(x)


def _said(
    subject: Subject,
    layer: int,
    x: Float[Tensor, "position d_model"],
    nudges: Float[Tensor, "nudge position d_model"],
) -> Float[Tensor, "nudge position d_model"]:
    """What the features active at x answer, each in proportion, and the skip."""
    sets = subject.model.transcoders
    cells, values = sets.encode(layer, x)
    positions, ids = cells.to(x.device).T
    vectors, bias = sets.read_rows(layer, ids, x[positions])
    pre = (vectors * x[positions]).sum(1) + bias
    writes = sets.decoder_rows(layer, layer, ids.cpu(), x.dtype).to(x) * (values / pre)[:, None]
    said = torch.zeros_like(nudges)
    for place in range(len(x)):
        mine = positions == place
        said[:, place] = nudges[:, place] @ vectors[mine].T @ writes[mine]
    skip = sets.layer(layer).skip
    return said if skip is None else said + nudges @ skip.to(x).T
