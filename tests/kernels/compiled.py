"""Compile for cards that are not here what the kernels launch there; a JSON line a launch.

    python tests/kernels/compiled.py

Triton's compiler needs no GPU: a played driver says which card there is, and a launch ends once it
is compiled. What follows a launch reads ones instead of its results.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CARDS = {"sm_80": (80, 163), "sm_90": (90, 227), "consumer": (89, 99)}
"""By class in `launch.CHOSEN`: compute capability, KiB of shared memory that a block may have."""


def main() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    sys.path[:0] = [str(ROOT / "kernels" / "bench"), str(ROOT / "kernels")]
    import kernel_cases
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from circuit_kernels import choice, launch

    class Card:
        """As much of a driver as a launch asks for before it runs."""

        number = 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", self.number, 32)

        def get_current_device(self) -> int:
            return self.number  # what is compiled is kept by device

        def get_current_stream(self, _device: int = 0) -> int:
            return 0

    card, compiled, seen = Card(), [], set()
    driver.set_active(card)
    run = JITFunction.run

    def compile_only(self: Any, *given: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        made = run(self, *given, grid=grid, warmup=True, **options)
        if id(made) not in seen:
            compiled.append(made)
            seen.add(id(made))
        return made

    JITFunction.run = compile_only
    torch.empty = lambda *shape, **options: torch.ones(*shape, **options)
    # Positions, and with them strides, that sixteen divides, and for attention that it does not.
    for positions, wanted in ((16, list(choice.KERNELS)), (3, ["attention_mix"])):
        kernel_cases.TINY = kernel_cases.Sizes(positions, 32, 64, 5, 16, 4, 2, 16, 16, 2, 64)
        for case in kernel_cases.cases(torch.device("cpu"), tiny=True):
            if case.kernel not in wanted:
                continue
            module = choice.KERNELS[case.kernel]
            form = getattr(importlib.import_module(f"circuit_kernels.{module}_triton"), case.kernel)
            products = "exact" in inspect.signature(form).parameters
            tf32 = {"exact": False} if products else {}
            for name, (card.number, room) in CARDS.items():
                form(**case.fresh(), tiles=launch.chosen(module, name, exact=False), **tf32)
                if products:
                    exact = launch.chosen(module, name, exact=True)
                    form(**case.fresh(), tiles=exact, exact=True)
                    double = launch.chosen(module, name, torch.float64)
                    form(**case.fresh(double=True), tiles=double)
                while compiled:
                    row = {"card": name, "kernel": case.kernel, "case": case.name, "room": room}
                    print(json.dumps(row | usage(compiled.pop())), flush=True)


def usage(binary: Any) -> dict[str, Any]:
    """What a block and its threads take of a card; bytes for the stack are registers spilt."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        words = [tool, "-res-usage", file.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {name: int(size) for name, size in re.findall(r"\b(REG|STACK):(\d+)", said)}
    return {
        "function": binary.metadata.name,
        "warps": binary.metadata.num_warps,
        "shared": binary.metadata.shared,
        "registers": found["REG"],
        "stack": found["STACK"],
    }


if __name__ == "__main__":
    main()
