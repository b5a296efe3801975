"""The same weights from one process and from any number of ranks."""

import warnings

import pytest
import torch
from torch import nn

import brain_dist

STEPS, BATCH = 20, 24


def _make():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.Tanh())
    return nn.Sequential(block, nn.Linear(32, 4))


def _batch(step):
    source = torch.Generator().manual_seed(step)
    return torch.rand(BATCH, 10, generator=source), torch.rand(BATCH, 4, generator=source)


def _train(rank, parallel):
    """Return the weights after 20 steps on this rank's shard of each global batch."""
    modules = nn.ModuleDict({"m": _make()})
    brain_dist.wrap_modules(modules, device="cpu", parallel=parallel)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3)
    world_size = brain_dist.get_world_size()
    for step in range(STEPS):
        x, y = (t[rank::world_size] for t in _batch(step))
        optimizer.zero_grad()
        nn.functional.mse_loss(modules["m"](x), y).backward()
        optimizer.step()
    state = brain_dist.full_state_dict(modules["m"])
    return torch.cat([value.flatten() for value in state.values()]).tolist()


def _train_twice(rank, parallel):
    return [_train(rank, parallel) for _ in range(2)]


def _flat(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def one_process():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = _make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(STEPS):
            x, y = _batch(step)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.state_dict().values()]).double()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_train_to_the_weights_of_one_process(ranks, one_process, parallel, world_size):
    """After 20 steps within 1e-6 relative; on all ranks, and in a second run, bit for bit."""
    results = ranks(_train_twice, world_size, parallel)
    weights = results[0][0]
    assert results == [[weights, weights]] * world_size
    difference = (_flat(weights) - one_process).norm() / one_process.norm()
    print(f"{parallel:4} on {world_size}: {difference:.1e} from one process, equal twice")  # noqa: T201 - the table
    assert difference < 1e-6


def _precisions(rank, precision):
    modules = nn.ModuleDict({"m": _make()})
    brain_dist.wrap_modules(modules, device="cpu", parallel="fsdp", precision=precision)
    x, y = (t[rank::2] for t in _batch(0))
    output = modules["m"](x)
    nn.functional.mse_loss(output.float(), y).backward()
    dtypes = {str(p.dtype) for p in modules.parameters()} | {
        str(p.grad.dtype) for p in modules.parameters()
    }
    return str(output.dtype), sorted(dtypes)


def test_fsdp_computes_in_half_precision_and_keeps_fp32_weights(ranks):
    """Weights and their gradients stay float32."""
    assert ranks(_precisions, 2, "bf16") == [("torch.bfloat16", ["torch.float32"])] * 2
    assert ranks(_precisions, 2, "fp32") == [("torch.float32", ["torch.float32"])] * 2


def _shards(rank, kind):
    choices = {"function": lambda name, module: name == "1", "classes": [nn.LayerNorm]}
    modules = {"m": _make()}
    brain_dist.wrap_modules(
        modules, device="cpu", parallel="fsdp", shard=choices.get(kind), reshard_after_forward=False
    )
    return [name for name, part in modules["m"].named_modules() if hasattr(part, "unshard")]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("default", ["", "0"]), ("function", ["", "1"]), ("classes", ["", "0.1"])],
)
def test_the_units_of_fsdp_can_be_chosen(ranks, kind, parts):
    """By a function of name and module, or by classes; each whole module is always one."""
    assert ranks(_shards, 2, kind) == [parts] * 2


def _hybrid(rank):
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    modules = nn.ModuleDict({"m": _make()})
    brain_dist.wrap_modules(modules, device="cpu", parallel="fsdp", mesh=mesh)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3)
    for step in range(STEPS):
        x, y = (t[rank::4] for t in _batch(step))
        optimizer.zero_grad()
        nn.functional.mse_loss(modules["m"](x), y).backward()
        optimizer.step()
    state = brain_dist.full_state_dict(modules["m"])
    return torch.cat([value.flatten() for value in state.values()]).tolist()


def test_hybrid_sharding_trains_to_the_same_weights(ranks, one_process):
    """Two replicas of two shards."""
    for weights in ranks(_hybrid, 4):
        assert (_flat(weights) - one_process).norm() / one_process.norm() < 1e-6


def _tensor_parallel(rank):
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    plans = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    torch.manual_seed(0)
    modules = {"m": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))}
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plain.load_state_dict(modules["m"].state_dict())
    brain_dist.wrap_modules(
        modules,
        device="cpu",
        parallel="fsdp",
        mesh=mesh,
        parallelize=lambda module, mesh: parallelize_module(module, mesh["tp"], plans),
    )
    x = torch.ones(2, 4)
    # FSDP2 warns that a row-wise output is a view, which nothing changes in place here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        same = torch.allclose(modules["m"](x), plain(x), atol=1e-6)
    state = brain_dist.full_state_dict(modules["m"])
    return same, all(torch.equal(state[key], value) for key, value in plain.state_dict().items())


def test_tensor_parallelism_is_the_users_function_of_a_mesh(ranks):
    """Columns and rows over "tp", FSDP2 over the rest; the full state dict is the module's."""
    assert ranks(_tensor_parallel, 4) == [(True, True)] * 4
