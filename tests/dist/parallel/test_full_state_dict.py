"""State dicts that load under any wrapping."""

import pytest
import torch
from torch import nn

import brain_dist


def _make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 3)))
    model.register_buffer("seen", torch.zeros(2))
    return model


def _train(rank, parallel, load, save, steps):
    """Train on the global batch, from one file to another; return keys and losses."""
    modules = {"m": _make()}
    brain_dist.wrap_modules(modules, device="cpu", parallel=parallel)
    optimizer = torch.optim.AdamW(modules["m"].parameters(), lr=0.05)
    if load:
        state = torch.load(load, weights_only=True)
        brain_dist.load_full_state_dict(modules["m"], state["m"])
        brain_dist.load_full_state_dict(optimizer, state["o"])
    losses = []
    x = torch.linspace(0, 1, 60).reshape(12, 5)
    world_size = brain_dist.get_world_size()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = modules["m"](x[rank::world_size]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(brain_dist.sum_over_ranks([loss.item()])[0] / world_size)
    state = {
        "m": brain_dist.full_state_dict(modules["m"]),
        "o": brain_dist.full_state_dict(optimizer),
    }
    if save and rank == 0:
        torch.save(state, save)
    return list(state["m"]), losses


@pytest.fixture(scope="module")
def uninterrupted():
    """Train six steps in one process without saving or loading."""
    model = _make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x = torch.linspace(0, 1, 60).reshape(12, 5)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("resumed", [("fsdp", 1), ("fsdp", 2), ("fsdp", 4), ("ddp", 3)])
def test_a_state_of_two_sharded_ranks_resumes_anywhere(ranks, uninterrupted, tmp_path, resumed):
    """Model and optimizer, on fewer ranks, as many, more, and under DDP."""
    path = str(tmp_path / "state.pt")
    keys, first = ranks(_train, 2, "fsdp", None, path, 3)[0]
    same_keys, second = ranks(_train, resumed[1], resumed[0], path, None, 3)[0]
    assert keys == same_keys == list(_make().state_dict())
    assert first + second == pytest.approx(uninterrupted, rel=1e-5)


def test_a_sharded_state_loads_into_plain_objects(ranks, tmp_path):
    """By torch's own load_state_dict, strictly."""
    path = tmp_path / "state.pt"
    ranks(_train, 2, "fsdp", None, str(path), 2)
    state = torch.load(path, weights_only=True)
    model = _make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    assert optimizer.state_dict()["state"][0]["exp_avg"].shape == (6, 5)


def _are_sharded(rank, parallel):
    modules = {"m": _make()}
    brain_dist.wrap_modules(modules, device="cpu", parallel=parallel)
    optimizer = torch.optim.AdamW(modules["m"].parameters())
    return brain_dist.is_sharded(modules["m"]), brain_dist.is_sharded(optimizer)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_sharded_objects_are_recognised(ranks, parallel):
    """A checkpointer has to know whether saving is a collective."""
    assert ranks(_are_sharded, 2, parallel) == [(parallel == "fsdp",) * 2] * 2
    assert not brain_dist.is_sharded(_make())


def test_in_one_process_a_full_state_dict_is_the_state_dict():
    """No copies, and load_full_state_dict is load_state_dict."""
    model, other = _make(), _make()
    state = brain_dist.full_state_dict(model)
    assert state["0.weight"].data_ptr() == model[0].weight.data_ptr()
    with torch.no_grad():
        model[0].weight += 1
    brain_dist.load_full_state_dict(other, state)
    assert torch.equal(other[0].weight, model[0].weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        brain_dist.load_full_state_dict(other, {"0.weight": state["0.weight"]})
