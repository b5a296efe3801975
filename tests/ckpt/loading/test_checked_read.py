"""Reading and verifying a state in one pass."""

import random

import pytest
import torch

from brain_ckpt import CheckpointDamagedError, Checkpointer, UnsafeCheckpointError
from brain_ckpt.loading.checked_read import read_checked
from brain_ckpt.recoverables.serialization import write_state
from brain_ckpt.storage.checksum import digest_file
from brain_ckpt.storage.stream import write_file


def states():
    base = torch.arange(3_000_000, dtype=torch.float32)
    yield {"one": torch.randn(700, 900), "n": 3, "text": "x" * 5000}
    yield {str(n): torch.full((n,), n, dtype=torch.int16) for n in range(1500)} | {"b": base}
    yield {"tied": [base, base], "view": base[10:20], "turned": base.view(3, -1).t()}
    yield {"none": torch.empty(0), "bytes": b"\0" * 3_000_000, "half": torch.ones(9, 9).half()}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.stride() == other.stride()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("algorithm", ["crc32", "sha256"])
@pytest.mark.parametrize("state", list(states()), ids=["plain", "many", "shared", "odd"])
def test_a_checked_read_returns_what_torch_reads(state, algorithm, tmp_path):
    """The states have many small tensors, views, tensors that share memory, or none."""
    file = tmp_path / "state"
    digest = write_file(file, lambda stream: write_state(state, stream), algorithm)
    found = read_checked(file, digest, algorithm)
    assert found is not None
    assert same(found[0], torch.load(file, weights_only=True))
    if "tied" in state:
        first, second = found[0]["tied"]
        assert first.data_ptr() == second.data_ptr()


def test_a_checked_read_returns_nothing_for_a_damaged_file(tmp_path):
    """Any flipped bit, in a tensor or between tensors, is found."""
    file = tmp_path / "state"
    state = {str(n): torch.randn(37 * n) for n in range(60)}
    digest = write_file(file, lambda stream: write_state(state, stream))
    content = file.read_bytes()
    chance = random.Random(5)
    assert read_checked(file, digest, "crc32") is not None
    for _ in range(60):
        place = chance.randrange(len(content))
        flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
        file.write_bytes(content[:place] + flipped + content[place + 1 :])
        assert read_checked(file, digest, "crc32") is None
    file.write_bytes(content[:-7])
    assert read_checked(file, digest, "crc32") is None


def test_a_checked_read_runs_no_code(tmp_path):
    """An intact file does not make it safe."""
    file = tmp_path / "state"
    torch.save({"code": print, "tensor": torch.ones(9)}, file)
    assert read_checked(file, digest_file(file, "crc32"), "crc32") is None


def big_run(directory):
    model = torch.nn.Linear(600, 600)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 600)).sum().backward()
    optimizer.step()
    return Checkpointer(directory, {"model": model, "optimizer": optimizer}), optimizer


def test_a_large_optimizer_state_is_read_once(tmp_path, monkeypatch):
    """Its moments are read from the verified file into memory of their own."""
    checkpointer, optimizer = big_run(tmp_path)
    saved = checkpointer.save_checkpoint()
    expected = [entry["exp_avg"].clone() for entry in optimizer.state.values()]
    for entry in optimizer.state.values():
        entry["exp_avg"].zero_()
    from brain_ckpt.loading import restore

    real, usual = restore.read_state, []

    def read_state(path, **how):
        usual.append(path.samefile(saved.paramfiles["model"]))
        return real(path, **how)

    monkeypatch.setattr(restore, "read_state", read_state)
    checkpointer.load_checkpoint(saved)
    assert usual == [True]
    (saved.path / "optimizer.ckpt").write_bytes(b"")
    found = [entry["exp_avg"] for entry in optimizer.state.values()]
    assert all(map(torch.equal, found, expected))


def test_damage_of_a_large_optimizer_state_is_named(tmp_path):
    """The error has the name of the file and the position."""
    checkpointer, _ = big_run(tmp_path)
    saved = checkpointer.save_checkpoint()
    file = saved.path / "optimizer.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"optimizer\.ckpt is damaged between byte"):
        checkpointer.load_checkpoint(saved)


def test_code_in_a_large_optimizer_state_is_refused(tmp_path, manifests):
    """The error is that of the usual way of reading."""
    checkpointer, optimizer = big_run(tmp_path)
    saved = checkpointer.save_checkpoint()
    torch.save(optimizer.state_dict() | {"code": print}, saved.path / "optimizer.ckpt")
    manifests.refit(saved.path, "optimizer.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="trusted=True"):
        checkpointer.load_checkpoint(saved)
