"""Operations that not every system has."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from brain_ckpt.storage import filesystem


@pytest.fixture
def digits(tmp_path):
    """Make a file of the digits 0 to 9, a thousand times."""
    path = tmp_path / "digits"
    path.write_bytes(b"0123456789" * 1000)
    return path


@pytest.fixture
def no_pread(monkeypatch):
    """Take away the reads that have an offset of their own."""
    for name in ("pread", "preadv"):
        monkeypatch.delattr(os, name)


@pytest.mark.usefixtures("no_pread")
def test_without_pread_a_range_is_read_all_the_same(digits):
    with filesystem.opened(digits) as (descriptor, size):
        assert filesystem.read_at(descriptor, 4, 3) == b"3456"
        assert filesystem.read_at(descriptor, 10, size - 2) == b"89"
        first, second = bytearray(3), bytearray(4)
        buffers = [memoryview(first), memoryview(second)]
        assert filesystem.read_into(descriptor, buffers, 8) == 7
        assert (bytes(first), bytes(second)) == (b"890", b"1234")
        assert filesystem.read_into(descriptor, buffers, size - 1) == 1


@pytest.mark.usefixtures("no_pread")
def test_without_pread_threads_do_not_disturb_each_other(digits):
    """They share the offset of the descriptor."""
    wrong = []

    def read(start):
        wrong.extend(
            start
            for _ in range(2000)
            if filesystem.read_at(descriptor, 1, start) != b"%d" % (start % 10)
        )

    with filesystem.opened(digits) as (descriptor, _):
        threads = [threading.Thread(target=read, args=[start]) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_directories_is_no_error(tmp_path, monkeypatch, code):
    refused = []

    def refuse(_):
        refused.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    filesystem.fsync_directory(tmp_path)
    assert refused == [code]


def test_a_disk_that_fails_to_flush_a_directory_is_an_error(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        filesystem.fsync_directory(tmp_path)


def test_where_directories_cannot_be_opened_they_are_used_by_their_paths(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(filesystem, "_DIRECTORY", 0)
    monkeypatch.setattr(os, "open", refuse)
    filesystem.fsync_directory(tmp_path)
    with filesystem.opened_directory(tmp_path) as path:
        assert path == tmp_path
