"""What importing the package costs, what it shows, and what it can do without."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from tests.house.repository import ROOT

HEAVY = {
    "torch",
    "transformers",
    "plotly",
    "pydantic",
    "numpy",
    "networkx",
    "rich",
    "triton",
    "yaml",
}
MOST_NAMES = 16


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints when it runs `code`."""
    paths = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'kernels')]!r}\n"
    ran = subprocess.run(
        [sys.executable, "-c", paths + textwrap.dedent(code), *arguments],
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after `code`."""
    last = "import json; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    return set(json.loads(python(f"{code}\n{last}").splitlines()[-1]))


@pytest.mark.parametrize("module", ["circuit_tracer", "circuit_tracer.cli.main"])
def test_importing_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") & HEAVY == set()


def test_help_loads_nothing_heavy():
    code = """
    from circuit_tracer.cli.main import main
    main(["trace", "--help"], standalone_mode=False)
    """
    assert loaded_by(textwrap.dedent(code)) & HEAVY == set()


def test_exports_are_few_and_all_there():
    import circuit_tracer as ct

    assert len(ct.__all__) <= MOST_NAMES
    assert {"load", "trace", "Graph", "Circuit", "Node", "CircuitTracerError"} <= set(ct.__all__)
    for name in ct.__all__:
        assert getattr(ct, name) is not None
    assert set(ct.__all__) <= set(dir(ct))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ct.nothing_of_the_kind


def test_exports_are_not_hidden_by_modules_of_the_same_name():
    code = """
    import circuit_tracer.tracing, circuit_tracer.loading
    import circuit_tracer as ct
    from circuit_tracer.tracing import page_circuit
    ct.Graph, ct.Circuit, ct.Node
    print(callable(ct.trace), callable(ct.load))
    """
    assert python(code).split() == ["True", "True"]


HIDE = """
import sys
class Hiding:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "plotly", "pandas"):
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


@pytest.mark.slow
def test_tracing_works_without_triton_plotly_and_pandas():
    code = """
    import circuit_tracer as ct
    graph = ct.trace("The opposite of small is", ct.load())
    circuit = graph.prune()
    assert circuit.paths(k=1)
    assert not {"triton", "plotly", "pandas"} & set(sys.modules)
    try:
        circuit.to_pandas()
    except ct.CircuitTracerError as error:
        print(error)
    """
    assert "pandas" in python(HIDE + textwrap.dedent(code))
