"""Whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from circuit_tracer import files
from circuit_tracer.errors import OutputError


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "one\n")
    path.chmod(0o640)
    files.write_text(path, "zwei ä\n")
    assert path.read_text(encoding="utf-8") == "zwei ä\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_still_points_where_it_did(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    files.write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where != "write":
        monkeypatch.setattr(os, where, full)
    with pytest.raises(OutputError, match=r"a\.txt.*No space left"), files.replacing(path) as place:
        place.write_text("half")
        if where == "write":
            full()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_graph_on_a_full_disk(toy, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "g"
    toy().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("circuit_tracer.graph_file.save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        toy(1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as place:
        place.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_a_folder(tmp_path, toy):
    with pytest.raises(OutputError, match="none/a"):
        files.write_text(tmp_path / "none" / "a", "x")
    with pytest.raises(OutputError, match="is a folder"):
        toy().save(tmp_path)
    with pytest.raises(OutputError, match="none/a"):
        toy().save(tmp_path / "none" / "a")


@contextmanager
def nobody():
    """Root, who may write anywhere, is somebody else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_an_unwritable_folder():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by root alone
        Path(folder).chmod(0o555)
        with nobody(), pytest.raises(OutputError, match="Permission"):
            files.write_text(Path(folder) / "a", "x")
        assert not list(Path(folder).iterdir())


def test_devices_are_written_to_not_replaced():
    files.write_text("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OutputError, match="No space left"):
        files.write_text("/dev/full", "x")
