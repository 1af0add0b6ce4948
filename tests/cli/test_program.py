"""The programs as processes: what only the operating system can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.house.repository import ROOT

PROMPT = "小的反义词是"
PROGRAM = [sys.executable, "-m", "circuit_tracer.cli", "trace"]


def environment(**changed):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **changed}


def test_output_is_utf8_in_every_locale(tmp_path):
    plain = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    ran = subprocess.run([*PROGRAM, PROMPT], cwd=tmp_path, env=plain, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    assert "大" in ran.stdout.decode("utf-8")


def test_nothing_but_results_on_either_stream(tmp_path):
    ran = subprocess.run([*PROGRAM, PROMPT], cwd=tmp_path, env=environment(), capture_output=True)
    assert ran.stderr == b""


def test_a_reader_may_leave(tmp_path):
    with subprocess.Popen(
        [*PROGRAM, PROMPT, "--json", "-"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 1
    assert said == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_said(tmp_path):
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [*PROGRAM, PROMPT, "--json", "-"],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert ran.returncode == 1
    assert b"No space left" in ran.stderr and b"Traceback" not in ran.stderr


def test_an_interruption_leaves_nothing_half_written(tmp_path):
    with subprocess.Popen(
        [*PROGRAM, "-"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background job of a shell without job control ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        time.sleep(3.0)  # by now it waits for its prompt
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick(tmp_path):
    """0.3 s on an idle machine; here against starting Python and click, which is most of it."""

    def seconds(*command):
        started = time.perf_counter()
        subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
        return time.perf_counter() - started

    bare = min(seconds(sys.executable, "-c", "import click") for _ in range(5))
    full = min(seconds(*PROGRAM, "--help") for _ in range(5))
    assert full < bare + 0.2


def test_a_prompt_that_is_not_text_is_refused(tmp_path):
    ran = subprocess.run(
        [*PROGRAM, b"\xff\xfe"], cwd=tmp_path, env=environment(), capture_output=True
    )
    assert ran.returncode == 2
    assert b"not valid UTF-8" in ran.stderr
