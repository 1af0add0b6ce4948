"""What all tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Where there is no GPU, Triton kernels run in its interpreter. The switch has to be set before
# anything imports triton, and torch does.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples on every run, so that a failure is the change's own. To look for new ones:
# make test PYTEST="--hypothesis-profile=search"
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

# Everything traced here is tiny: a second thread only waits for the first.
torch.set_num_threads(1)

DATA = Path(__file__).parent / "data"
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def oracle() -> Path:
    """Folder of the reference tool's results on tiny random models; tests/data/oracle/README.md."""
    return DATA / "oracle"


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless, one for all tests of a process, since a second one cannot be driven
    from it. Tests that need it are skipped where it is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    if not found:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is no GPU, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
