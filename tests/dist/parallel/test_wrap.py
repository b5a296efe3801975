"""Wrapping modules with DDP and FSDP2."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import brain_dist
from brain_dist.parallel.wrap import use_sync_batchnorm


def _make(rank=0):
    torch.manual_seed(rank)
    trained = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    frozen = nn.BatchNorm1d(3).requires_grad_(requires_grad=False)
    frozen.running_mean += rank
    return nn.ModuleDict({"trained": trained, "frozen": frozen, "empty": nn.ReLU()})


def test_in_one_process_nothing_is_wrapped():
    """Without a group the modules stay as they are."""
    modules = _make()
    kept = dict(modules.items())
    brain_dist.wrap_modules(modules, device="cpu")
    assert dict(modules.items()) == kept


def _wrap(rank, parallel):
    modules = _make(rank)
    inner = modules["trained"]
    keys = list(inner.state_dict())
    brain_dist.wrap_modules(modules, parallel=parallel, device="cpu")
    modules["trained"](torch.rand(5, 3) + rank).sum().backward()
    unwrapped = brain_dist.unwrap_module(modules["trained"])
    first = next(iter(unwrapped.parameters()))
    weights = first.full_tensor() if hasattr(first, "full_tensor") else first
    grad = first.grad.full_tensor() if hasattr(first, "full_tensor") else first.grad
    return {
        "wrapped": [isinstance(m, DistributedDataParallel) for m in modules.values()],
        "same object": unwrapped is inner,
        "plain keys": list(unwrapped.state_dict()) == keys,
        "weights": weights.tolist(),
        "gradients": grad.tolist(),
        "frozen": modules["frozen"].running_mean.tolist(),
    }


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_trainable_modules_are_wrapped_and_all_ranks_start_equal(ranks, parallel):
    """Weights, gradients and the buffers of frozen modules are rank 0's; keys stay plain."""
    first, second = ranks(_wrap, 2, parallel)
    assert first == second
    assert first["wrapped"] == [parallel == "ddp", False, False]
    assert first["same object"]
    assert first["plain keys"]
    assert first["frozen"] == [0, 0, 0]


def _broadcast_tensors(rank):
    module = nn.Linear(2, 3).requires_grad_(requires_grad=False)
    module.weight.data = torch.full((2, 3), float(rank)).t()
    tensors = [
        torch.tensor(rank == 0),
        torch.tensor([rank + 1j]),
        torch.tensor([rank], dtype=torch.int16),
    ]
    for i, tensor in enumerate(
        [*tensors, torch.zeros(0), torch.full((2,), rank, dtype=torch.bfloat16)]
    ):
        module.register_buffer(f"b{i}", tensor)
    brain_dist.wrap_modules({"m": module}, device="cpu")
    return {key: value.tolist() for key, value in module.state_dict().items() if key != "bias"}


def test_tensors_of_every_kind_become_those_of_rank_0(ranks):
    """Booleans, complex and 16-bit numbers, an empty tensor, and a transposed weight."""
    expected = {
        "weight": [[0.0, 0.0]] * 3,
        "b0": True,
        "b1": [1j],
        "b2": [0],
        "b3": [],
        "b4": [0.0, 0.0],
    }
    assert ranks(_broadcast_tensors, 2) == [expected] * 2


def _wrap_twice(rank):
    modules = _make(rank)
    brain_dist.wrap_modules(modules, device="cpu")
    wrapped = modules["trained"]
    brain_dist.wrap_modules(modules, device="cpu")
    return modules["trained"] is wrapped


def _two_names(rank, parallel):
    module = nn.Linear(2, 2)
    modules = {"a": module, "b": module, "c": nn.Linear(2, 2)}
    brain_dist.wrap_modules(modules, device="cpu", parallel=parallel)
    modules["a"](modules["b"](torch.rand(1, 2))).sum().backward()
    return modules["a"] is modules["b"] is not modules["c"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_module_under_two_names_is_wrapped_once(ranks, parallel):
    """Two wrappers would both reduce its gradients."""
    assert ranks(_two_names, 2, parallel) == [True, True]


def test_a_wrapped_module_is_not_wrapped_again(ranks):
    """A second fit() finds its modules wrapped."""
    assert ranks(_wrap_twice, 2) == [True, True]


def test_unwrap_returns_what_the_user_made(group_of_one):
    """From DDP, from torch.compile, and from no wrapper."""
    module = nn.Linear(1, 1)
    assert brain_dist.unwrap_module(module) is module
    assert brain_dist.unwrap_module(DistributedDataParallel(module)) is module
    assert brain_dist.unwrap_module(torch.compile(module, backend="eager")) is module


def _batchnorm(rank):
    modules = {"bn": nn.BatchNorm1d(2)}
    plain = modules["bn"]
    brain_dist.wrap_modules(modules, device="cpu")
    output = modules["bn"](torch.tensor([[0.0, 1.0], [2.0, 5.0]]) * (rank + 1))
    output.sum().backward()
    return type(plain).__name__, plain is modules["bn"].module, output.tolist()


def test_batchnorm_works_on_gloo(ranks):
    """SpeechBrain converts it to SyncBatchNorm, which raises an error on the CPU."""
    expected = ("BatchNorm1d", True, [[-1.0, -1.0], [1.0, 1.0]])
    for name, same, output in ranks(_batchnorm, 2):
        assert (name, same) == expected[:2]
        assert torch.allclose(torch.tensor(output), torch.tensor(expected[2]), atol=1e-4)


def test_sync_batchnorm_keeps_the_objects(group_of_one):
    """In SpeechBrain the checkpointer keeps a BatchNorm that is no longer trained."""

    class Overridden(nn.BatchNorm1d):
        def forward(self, x):
            return x

    bn, overridden = nn.BatchNorm1d(2), Overridden(2)
    module = nn.Sequential(bn, nn.Sequential(nn.BatchNorm2d(3)), overridden)
    keys, weight = list(module.state_dict()), bn.weight
    use_sync_batchnorm(module)
    use_sync_batchnorm(bn)
    assert isinstance(module[0], nn.SyncBatchNorm)
    assert isinstance(module[1][0], nn.SyncBatchNorm)
    assert module[0] is bn
    assert bn.weight is weight
    assert list(module.state_dict()) == keys
    assert type(overridden) is Overridden
    # On one rank it computes what BatchNorm computes.
    x = torch.rand(5, 2)
    bn.eval()
    assert torch.equal(bn(x), nn.BatchNorm1d(2).eval()(x))


def _different(rank, kind):
    modules = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2 + (kind == "shape" and rank == 1))}
    if kind == "frozen" and rank == 2:
        modules["b"].bias.requires_grad_(requires_grad=False)
    if kind == "missing" and rank == 1:
        del modules["b"]
    if kind == "order" and rank == 1:
        modules = {"b": modules["b"], "a": modules["a"]}
    try:
        brain_dist.wrap_modules(modules, device="cpu")
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", "'b.weight': float32 (2, 2), trainable on rank 0 and float32 (3, 2), trainable"),
        (
            "frozen",
            "'b.bias': float32 (2,), trainable on rank 0 and float32 (2,), frozen on rank 2",
        ),
        ("missing", "'b': a Linear on rank 0 and missing on rank 1"),
        ("order", "'a' on rank 0 where rank 1 has 'b'"),
    ],
)
def test_modules_that_differ_between_ranks_are_named(ranks, kind, message):
    """When they are wrapped, on every rank, instead of a hang or a wrong sum later."""
    results = ranks(_different, 3, kind)
    assert len(set(results)) == 1
    assert message in results[0]


class _Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(2, 1)
        self.forgotten = nn.Linear(2, 1)

    def forward(self, x):
        return self.used(x)


def _unused(rank, find):
    modules = {"m": _Unused()}
    brain_dist.wrap_modules(modules, device="cpu", find_unused_parameters=bool(find))
    try:
        for _ in range(3):
            modules["m"](torch.ones(1, 2)).sum().backward()
    except RuntimeError as error:
        return str(error)
    return "trained"


def test_an_unused_parameter_is_named(ranks):
    """Torch's error has the indices of parameters; this one their names and an option."""
    for rank, text in enumerate(ranks(_unused, 2, 0)):
        assert f"on rank {rank} no gradient for 'forgotten.weight', 'forgotten.bias'" in text
        assert "write --find_unused_parameters" in text


def test_unused_parameters_are_an_option(ranks):
    """With find_unused_parameters, DDP searches for them at each step."""
    assert ranks(_unused, 2, 1) == ["trained"] * 2


def _options(rank, options):
    modules = _make(0)
    brain_dist.wrap_modules(modules, device="cpu", **options)
    torch.manual_seed(rank)
    x = torch.rand(5, 3)
    for _ in range(3):
        modules["trained"].zero_grad()
        modules["trained"](x).square().sum().backward()
    module = brain_dist.unwrap_module(modules["trained"])
    return [p.grad.flatten()[:4].tolist() for p in module.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"bucket_cap_mb": 1e-4},
        {"comm_hook": "fp16"},
        {"comm_hook": "bf16"},
    ],
)
def test_ddp_options_give_the_same_gradients(ranks, options):
    """Up to rounding; with a comm hook up to half precision."""
    expected = ranks(_options, 2, {})[0]
    first, second = ranks(_options, 2, options)
    assert first == second
    tolerance = 0.05 if "comm_hook" in options else 1e-5
    for values, reference in zip(first, expected, strict=True):
        assert values == pytest.approx(reference, abs=tolerance, rel=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "dp"}, r"'ddp' or 'fsdp', got 'dp'"),
        ({"comm_hook": "fp8"}, r"'fp16' or 'bf16', got 'fp8'"),
        ({"comm_hook": "fp16", "parallel": "fsdp"}, r"got comm_hook='fp16' with parallel='fsdp'"),
        ({"parallelize": print}, r"options of FSDP2, got them with parallel='ddp'"),
    ],
)
def test_options_that_contradict_are_refused(group_of_one, options, message):
    """The error names both."""
    with pytest.raises(ValueError, match=message):
        brain_dist.wrap_modules(_make(), device="cpu", **options)
