"""A file is replaced completely or not at all, with the mode and the links that it had."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import jaxcompress as jc
from jaxcompress.checkpoint import atomic, write_atomically

TREE = {"w": np.arange(1000.0)}


def mode(path):
    return oct(path.stat().st_mode & 0o7777)


@contextlib.contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    for value, expected in ((0o022, "0o644"), (0o027, "0o640"), (0o077, "0o600")):
        with umask(value):
            jc.save(tmp_path / f"{value}.safetensors", TREE)
            jc.save_recipe(tmp_path / f"{value}.json", jc.hashed(keep=1 / 2))
        for suffix in ("safetensors", "json"):
            assert mode(tmp_path / f"{value}.{suffix}") == expected


def test_an_existing_file_keeps_its_mode(tmp_path):
    path = tmp_path / "tree.safetensors"
    path.write_text("before")
    path.chmod(0o604)
    with umask(0o077):
        jc.save(path, TREE)
    assert mode(path) == "0o604"
    np.testing.assert_array_equal(jc.load(path)["w"], TREE["w"])


@pytest.mark.parametrize("exists", [True, False])
def test_of_a_link_the_target_is_written(tmp_path, exists):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target.safetensors", tmp_path / "link"
    if exists:
        target.write_text("before")
    link.symlink_to(Path("folder") / target.name)
    jc.save(link, TREE)
    assert link.is_symlink()
    assert os.listdir(target.parent) == [target.name]
    np.testing.assert_array_equal(jc.load(target)["w"], TREE["w"])


def test_names_as_long_as_names_can_be(tmp_path):
    jc.save(tmp_path / ("a" * 255), TREE)
    assert len(jc.load(tmp_path / ("a" * 255))["w"]) == 1000


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    """A file that may not grow further is a disk that is full."""
    path = tmp_path / "tree.safetensors"
    jc.save(path, TREE)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            jc.save(path, {"w": np.ones(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_read_only_folder_leaves_the_old_file_whole():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "tree.safetensors"
        jc.save(path, TREE)
        path.chmod(0o666)
        before = path.read_bytes()
        folder.chmod(0o555)
        user = os.geteuid()
        if not user:
            os.seteuid(65534)  # modes do not bind root
        try:
            with pytest.raises(PermissionError):
                jc.save(path, {"w": np.ones(1000)})
            assert path.read_bytes() == before
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert os.listdir(folder) == [path.name]


def test_what_is_protected_or_no_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "tree.safetensors"
    path.write_text("before")
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    with pytest.raises(PermissionError, match="is write-protected"):
        write_atomically(path, b"after")
    monkeypatch.undo()
    assert path.read_text() == "before"
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_atomically(tmp_path, b"after")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        write_atomically(tmp_path / "pipe", b"after")
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "tree", b"after")
    assert sorted(os.listdir(tmp_path)) == ["pipe", "tree.safetensors"]


WRITE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
number = 0
while True:
    atomic.write_atomically(sys.argv[2], bytes([number % 256]) * 1_000_000)
    number += 1
    if number == 1:
        print("ready", flush=True)
"""


def test_a_kill_leaves_a_whole_file(tmp_path):
    """SIGKILL at twelve moments of a loop that writes."""
    path = tmp_path / "data"
    for moment in np.random.default_rng(0).uniform(0, 0.03, size=12):
        command = [sys.executable, "-c", WRITE, atomic.__file__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
        data = path.read_bytes()
        assert len(data) == 1_000_000
        assert len(set(data)) == 1
