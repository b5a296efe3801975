"""No damaged file is loaded silently."""

import random
import shutil

import pytest
import torch

from brain_ckpt import (
    CheckpointDamagedError,
    Checkpointer,
    CheckpointError,
    NoIntactCheckpointError,
)

FILES = [
    "model.ckpt",
    "optimizer.ckpt",
    "counter.ckpt",
    "CKPT.yaml",
    "MANIFEST.json",
    "ranks/0/rng.pt",
]


def flip(content, chance):
    place = chance.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    )


def truncate(content, chance):
    return content[: chance.randrange(len(content))]


def zero_a_page(content, chance):
    size = min(4096, max(1, len(content) // 3))
    place = chance.randrange(max(1, len(content) - size))
    return content[:place] + bytes(size) + content[place + size :]


def lengthen(content, chance):
    return content + bytes([chance.randrange(256)])


@pytest.mark.parametrize("name", FILES)
def test_no_damage_of_a_file_is_loaded_silently(name, workloads, fast_dir, times, tally, progress):
    """Flipped bits, truncations, zeroed pages and appended bytes are found, no object changes."""
    run = workloads.Run(fast_dir)
    run.set(7)
    checkpoint = run.checkpointer.save_checkpoint()
    file = checkpoint.path / name
    intact = file.read_bytes()
    chance = random.Random(progress.seed)
    run.set(1)
    total = times(150, 10_000)
    for number in range(total):
        progress("damaged files", number + 1, total)
        way = (flip, flip, flip, truncate, zero_a_page, lengthen)[number % 6]
        damaged = way(intact, chance)
        if damaged == intact:
            continue
        file.write_bytes(damaged)
        tally["damaged files loaded"] += 1
        with pytest.raises(CheckpointError):
            run.checkpointer.recover_if_possible()
        untouched = run.number() == 1
        tally["silent wrong loads"] += not untouched
        assert untouched
    file.write_bytes(intact)
    assert run.recover() == 7


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(name, workloads, fast_dir):
    """Any file can be missing, and the next older checkpoint is loaded."""
    run = workloads.Run(fast_dir)
    for number in (1, 2):
        run.set(number)
        newest = run.checkpointer.save_checkpoint()
    (newest.path / name).unlink()
    assert workloads.Run(fast_dir).recover() == 1


@pytest.mark.parametrize("name", ["model.ckpt", "counter.ckpt", "MANIFEST.json", "CKPT.yaml"])
def test_a_file_from_another_checkpoint_is_found(name, workloads, fast_dir):
    """Intact files of two saves are not an intact checkpoint."""
    run = workloads.Run(fast_dir)
    saved = []
    for number in (1, 2):
        run.set(number)
        saved.append(run.checkpointer.save_checkpoint())
    first, second = (one.path / name for one in saved)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(NoIntactCheckpointError, match="is damaged"):
        workloads.Run(fast_dir).recover()


def test_the_next_older_checkpoint_is_loaded_and_the_damaged_file_is_named(
    workloads, fast_dir, caplog
):
    """Damage of the newest checkpoint costs one interval."""
    run = workloads.Run(fast_dir)
    for number in (1, 2):
        run.set(number)
        newest = run.checkpointer.save_checkpoint()
    file = newest.path / "optimizer.ckpt"
    file.write_bytes(flip(file.read_bytes(), random.Random(0)))
    assert workloads.Run(fast_dir).recover() == 1
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert "optimizer.ckpt" in errors[0]


def test_a_damaged_best_checkpoint_is_an_error(workloads, fast_dir):
    """Another model would be evaluated as the best one."""
    run = workloads.Run(fast_dir)
    for number, loss in ((1, 0.1), (2, 0.2)):
        run.set(number)
        saved = run.checkpointer.save_checkpoint(meta={"loss": loss})
        if number == 1:
            (saved.path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt"):
        run.checkpointer.recover_if_possible(min_key="loss")


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(workloads, fast_dir):
    """This also holds if none of them can be listed."""
    run = workloads.Run(fast_dir)
    run.set(3)
    saved = run.checkpointer.save_checkpoint()
    (saved.path / "CKPT.yaml").write_bytes(b"\x00garbage")
    with pytest.raises(NoIntactCheckpointError, match=r"CKPT\.yaml"):
        run.checkpointer.recover_if_possible()
    assert run.checkpointer.list_checkpoints() == []


def test_a_checkpoint_of_speechbrain_with_a_damaged_tensor_is_passed_over(
    tmp_path, speechbrain_run
):
    """Without a manifest the checksums of the zip are compared."""
    save = tmp_path / "save"
    shutil.copytree(speechbrain_run / "stopped", save)
    newest = max(
        save.iterdir(), key=lambda path: (path / "CKPT.yaml").read_text().split("unixtime: ")[1]
    )
    file = newest / "model.ckpt"
    chance = random.Random(1)
    intact = torch.load(file, weights_only=True)
    content = file.read_bytes()
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
    )
    passed_over = 0
    for _ in range(200):
        file.write_bytes(flip(content, chance))
        found = Checkpointer(save, {"model": model}).recover_if_possible()
        if found.path == newest:
            assert all(
                torch.equal(a, b)
                for a, b in zip(model.state_dict().values(), intact.values(), strict=True)
            )
        else:
            passed_over += 1
    assert passed_over > 50


def test_a_checkpoint_of_a_killed_speechbrain_run_is_passed_over(tmp_path, speechbrain_run):
    """SpeechBrain writes CKPT.yaml first, so state files can be missing, empty or truncated."""
    for name, content in (
        ("model.ckpt", None),
        ("model.ckpt", b""),
        ("optimizer.ckpt", b"PK\x03\x04cut"),
    ):
        save = tmp_path / f"save-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(speechbrain_run / "stopped", save)
        newest = save / "CKPT+2026-11-22+15-28-20+00"
        (newest / name).unlink() if content is None else (newest / name).write_bytes(content)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
        )
        optimizer = torch.optim.AdamW(model.parameters())
        found = Checkpointer(save, {"model": model, "optimizer": optimizer}).recover_if_possible()
        assert found.path != newest
