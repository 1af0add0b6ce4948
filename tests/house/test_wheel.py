"""The wheel: what is in it, how large it is, and that it runs from nothing but itself."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from tests.house.repository import ROOT

pytestmark = pytest.mark.slow
LARGEST = 20 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("trace_circuits-*.whl")
    return built


def test_it_holds_what_it_must_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"circuit_tracer", "circuit_kernels"}
    for needed in (
        "circuit_tracer/bundled/weights/model/config.json",
        "circuit_tracer/bundled/weights/plt/config.yaml",
        "circuit_tracer/bundled/weights/clt/config.yaml",
        "circuit_tracer/view/assets/app.js",
    ):
        assert needed in names
    assert any(name.endswith("LICENSE") for name in names)


def test_it_is_small_enough(wheel):
    assert wheel.stat().st_size <= LARGEST


def test_it_traces_with_nothing_but_itself(wheel, tmp_path):
    """Unpacked in an empty folder, without the repository on any path."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    run = tmp_path / "run"
    run.mkdir()
    code = """if True:
        import circuit_tracer as ct
        from circuit_tracer.cli.main import trace
        print(ct.__file__)
        trace(["The opposite of small is", "--quiet"])
    """
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=run,
        env={**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    first, page = ran.stdout.splitlines()
    assert first.startswith(str(site))
    assert (run / page).stat().st_size > 100_000
