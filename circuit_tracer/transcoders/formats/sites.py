"""Names of places in a model, as other tools write them, to the sites that can be traced.

TransformerLens names (`blocks.3.hook_mlp_out`) and the module names of Hugging Face with `.input`
or `.output` (`model.layers.3.mlp.output`) are understood where they name the same tensor as one of
`READ_SITES` and `WRITE_SITES`. `hook_mlp_in` is not: TransformerLens means the residual stream
before the norm by it, and some releases the norm's output.
"""

from __future__ import annotations

import re
from typing import Literal, cast

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import READ_SITES, WRITE_SITES, ReadSite, WriteSite

BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.([^.]+)\.(.+)$")
READS: dict[str, ReadSite] = {
    **{site: site for site in READ_SITES},
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "ln_2.output": "mlp.hook_in",
    "mlp.input": "mlp.hook_in",
}
WRITES: dict[str, WriteSite] = {
    **{site: site for site in WRITE_SITES},
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "mlp.output": "mlp.hook_out",
}


def read_site(hook: str, where: object) -> ReadSite:
    """The site a hook name reads. Raises TranscoderError if it cannot be traced."""
    return cast(ReadSite, _site(hook, where, "read"))


def write_site(hook: str, where: object) -> WriteSite:
    """The site a hook name predicts. Raises TranscoderError if it cannot be traced."""
    return cast(WriteSite, _site(hook, where, "written"))


def layer_of(hook: str) -> int | None:
    """The layer in a hook name, if it has one."""
    match = BLOCK.search(hook)
    return int(match[1]) if match and re.fullmatch(r"[0-9]{1,4}", match[1]) else None


def _site(hook: str, where: object, use: Literal["read", "written"]) -> str:
    known: dict[str, str] = {**READS} if use == "read" else {**WRITES}
    match = BLOCK.search(hook)
    site = match[2] if match else hook
    if site in known:
        return known[site]
    raise TranscoderError(
        f"{where} says that {hook or 'nothing'!r} is {use}, which is not a place this tool can "
        f"trace from. Known are, in a block: {', '.join(known)}."
    )
