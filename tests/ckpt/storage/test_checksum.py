"""Checksums do not depend on the sizes of the pieces or on the library."""

import os
import random
import zlib

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.storage import checksum
from brain_ckpt.storage.checksum import CHUNK_BYTES, Digester

SIZES = (0, 1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 12345)


@pytest.mark.parametrize("size", SIZES)
def test_each_chunk_has_the_crc_of_zlib_for_pieces_of_any_size(size):
    draw = random.Random(size)
    content = memoryview(os.urandom(size))
    digester, start = Digester("crc32"), 0
    while start < size:
        piece = content[start : start + draw.choice((1, 100, 2**20, 2 * CHUNK_BYTES))]
        digester.update(piece)
        start += len(piece)
    chunks = [content[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)]
    assert digester.finish() == (size, tuple(f"{zlib.crc32(chunk):08x}" for chunk in chunks))


def test_a_checkpoint_saved_with_the_extra_is_loaded_without_it(tmp_path, monkeypatch):
    fast = pytest.importorskip("isal.isal_zlib")
    assert checksum.fastest_crc32() is fast.crc32
    saved, loaded = torch.nn.Linear(700, 700), torch.nn.Linear(700, 700)
    Checkpointer(tmp_path, {"model": saved}).save_checkpoint()
    monkeypatch.setattr(checksum, "fastest_crc32", lambda: zlib.crc32)
    Checkpointer(tmp_path, {"model": loaded}).recover_if_possible()
    assert torch.equal(loaded.weight, saved.weight)
