"""Applying the bucket order makes resuming exact on three ranks or more."""

import random

import pytest
import torch
from torch import nn

import brain_dist


class _Shuffled(nn.Module):
    """Uses its layers in another order than it makes them, so that DDP rebuilds its buckets."""

    def __init__(self, kind):
        super().__init__()
        self.last = nn.Linear(40, 1)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
        self.norm = nn.BatchNorm1d(40)
        self.words = nn.Embedding(7, 40, sparse=kind == "sparse")

    def forward(self, x):
        x = x + self.words((x[:, 0] * 7).long())
        for layer in (self.layers[i] for i in (5, 2, 4, 0, 3, 1)):
            x = layer(x).tanh()
        return self.last(nn.functional.dropout(self.norm(x), 0.1))


_OPTIONS = {
    "plain": {},
    "views": {"gradient_as_bucket_view": True},
    "compressed": {"comm_hook": "bf16"},
    "sparse": {},
    "accumulated": {},
    "static": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
}


class _Training:
    """A training loop with two modules under DDP, in several buckets each."""

    def __init__(self, kind, state=None, apply=True, warm_up=False):
        torch.manual_seed(0)
        self.accumulation = 3 if kind == "accumulated" else 1
        self.modules = {"a": _Shuffled(kind), "b": _Shuffled("plain")}
        options = {"device": "cpu", "bucket_cap_mb": 0.01, **_OPTIONS[kind]}
        brain_dist.wrap_modules(self.modules, **options)
        self.order = brain_dist.BucketOrder(self.modules)
        parameters = [p for m in self.modules.values() for p in m.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3)
        if warm_up:
            brain_dist.warm_up_step(lambda: self.forward_backward(99), self.modules)
        if state is not None:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.order.load_state_dict(state["order"])
            if apply:
                self.order.apply()

    def forward_backward(self, number, use=("a", "b")):
        for micro in range(self.accumulation):
            torch.manual_seed(number * 100 + micro * 10 + brain_dist.get_rank())
            with brain_dist.no_sync(self.modules, micro < self.accumulation - 1):
                x = torch.rand(8, 40)
                sum(self.modules[n](x).square().sum() for n in use).backward()

    def run(self, steps, use=("a", "b")):
        for number in steps:
            self.optimizer.zero_grad()
            self.forward_backward(number, use)
            self.optimizer.step()
        return self

    def state(self):
        states = {
            name: {key: value.clone() for key, value in module.state_dict().items()}
            for name, module in self.modules.items()
        }
        return {**states, "order": self.order.state_dict()}

    def buckets(self):
        """Return the parameters of each bucket, in the order in which DDP reduces them."""
        self.run(range(2))  # it logs what it did in the step before
        key = "rebuilt_per_bucket_param_indices"
        return [m._get_ddp_logging_data().get(key) for m in self.modules.values()]


def _same(one, other):
    return all(torch.equal(one[n][k], other[n][k]) for n in "ab" for k in one[n])


def _resume(rank, kind):
    full_run = _Training(kind).run(range(5))
    first = _Training(kind).run(range(2)).state()
    second = _Training(kind, first).run(range(2, 3)).state()
    third = _Training(kind, second).run(range(3, 5))
    without = _Training(kind, first, apply=False).run(range(2, 5))
    return (
        _same(full_run.state(), third.state()),
        _same(full_run.state(), without.state()),
        first["order"] == second["order"] == third.state()["order"] != {},
        full_run.buckets() == third.buckets(),
        third.buckets()[0].count(",") > 1,
    )


@pytest.mark.parametrize(
    ("world_size", "kind"),
    [
        (3, "plain"),
        (4, "plain"),
        (3, "views"),
        (3, "compressed"),
        (3, "sparse"),
        (4, "accumulated"),
    ],
)
def test_a_chain_of_resumed_runs_is_exact(ranks, world_size, kind):
    """Stopped twice: the same weights and buckets; without the order, other weights."""
    assert ranks(_resume, world_size, kind) == [(True, False, True, True, True)] * world_size


def _resume_early(rank):
    full_run = _Training("plain").run(range(1)).run(range(1, 6))
    at_once = _Training("plain", _Training("plain").state()).run(range(6))
    after_one = _Training("plain", _Training("plain").run(range(1)).state()).run(range(1, 6))
    return _same(full_run.state(), at_once.state()), _same(full_run.state(), after_one.state())


def test_a_run_stopped_before_or_after_its_first_step_is_exact(ranks):
    """Before it no order is known, and DDP must not rebuild its buckets yet."""
    assert ranks(_resume_early, 3) == [(True, True)] * 3


def _train_second_module_later(rank):
    def begin():
        return _Training("plain").run(range(3), use=("a",))

    full_run = begin().run(range(3, 8))
    saved = begin().state()
    resumed = _Training("plain", saved).run(range(3, 8))
    return (
        list(saved["order"]),
        list(resumed.order.state_dict()),
        _same(full_run.state(), resumed.state()),
    )


def test_a_module_that_is_trained_later_is_exact_too(ranks):
    """Its order is not known at the stop, and is recorded later."""
    assert ranks(_train_second_module_later, 3) == [(["a"], ["a", "b"], True)] * 3


def _train_with_unused(rank):
    full_run = _Training("unused").run(range(5)).state()
    half = _Training("unused").run(range(3)).state()
    resumed = _Training("unused", half).run(range(3, 5)).state()
    return half["order"], _same(full_run, resumed)


def test_with_unused_parameters_ddp_keeps_its_buckets_and_no_order_is_recorded(ranks):
    """A resumed run is exact without an order."""
    assert ranks(_train_with_unused, 3) == [({}, True)] * 3


def _static(rank):
    full_run = _Training("static").run(range(5)).state()
    half = _Training("static").run(range(3)).state()
    resumed = _Training("static", half).run(range(3, 5)).state()
    warmed_up = _Training("static", half, warm_up=True).run(range(3, 5)).state()
    return half["order"], _same(full_run, resumed), _same(full_run, warmed_up)


def test_a_static_graph_needs_a_warm_up_step(ranks):
    """There DDP rebuilds its buckets after the second step, in the order of the first."""
    assert ranks(_static, 3) == [({}, False, True)] * 3


def _state_after_apply(rank):
    order = _Training("plain").run(range(2)).order.state_dict()
    training = _Training("plain")
    # Buffers differ between ranks here; apply() must not broadcast rank 0's.
    training.modules["a"].module.norm.running_mean.fill_(rank)
    for module in training.modules.values():
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
    training.order.load_state_dict(order if rank == 0 else {})
    before = training.state()
    random.seed(0)
    expected = torch.get_rng_state(), random.getstate()
    applied = training.order.apply()
    gradients = [p.grad for m in training.modules.values() for p in m.parameters()]
    return (
        applied,
        all((g == 1).all().item() for g in gradients),
        _same(before, training.state()),
        torch.equal(torch.get_rng_state(), expected[0]) and random.getstate() == expected[1],
        [type(m.module).__name__ for m in training.modules.values()],
        training.order.apply(),  # a second call has no effect
    )


def test_apply_changes_no_state_and_uses_the_order_of_rank_0(ranks):
    """Gradients, buffers and random numbers stay; the other ranks need no loaded order."""
    seen = (["a", "b"], True, True, True, ["_Shuffled", "_Shuffled"], ["a", "b"])
    assert ranks(_state_after_apply, 3) == [seen] * 3


def _hooks(rank):
    training = _Training("plain")
    parameters = [p for m in training.modules.values() for p in m.parameters()]
    with brain_dist.no_sync(training.modules):
        sum(m(torch.rand(8, 40)).sum() for m in training.modules.values()).backward()
    unsynchronised = training.order.state_dict()
    training.run(range(1))
    left = [hook for p in parameters for hook in (p._post_accumulate_grad_hooks or {})]
    left += [hook for m in training.modules.values() for hook in m._forward_hooks]
    order = [name for name, _ in training.order.state_dict()["a"]]
    return unsynchronised, left, order[:3], len(order)


def test_the_order_is_that_of_the_first_synchronised_backward_and_no_hook_stays(ranks):
    """The last layer's gradients come first."""
    seen = ({}, [], ["last.bias", "last.weight", "norm.weight"], 17)
    assert [(*r[:2], r[2], r[3]) for r in ranks(_hooks, 3)] == [seen] * 3


def _save(rank):
    return _Training("plain").run(range(2)).state()


def _resume_from(rank, state):
    training = _Training("plain", state, apply=False)
    applied = training.order.apply()
    return applied, training.run(range(2)).order.state_dict() == state["order"]


def test_on_another_number_of_ranks_the_order_is_kept(ranks):
    """On two ranks and on one it has no effect, and stays in the state."""
    state = ranks(_save, 3)[0]
    assert ranks(_resume_from, 4, state) == [(["a", "b"], True)] * 4
    assert ranks(_resume_from, 2, state) == [([], True)] * 2
    one_process = brain_dist.BucketOrder({"m": nn.Linear(1, 1)})
    one_process.load_state_dict(state["order"])
    assert one_process.apply() == []
    assert one_process.state_dict() == state["order"]


def _changed(rank):
    import logging

    training = _Training("plain")
    messages = []
    logger = logging.getLogger("brain_dist.parallel.bucket_order")
    logger.addFilter(lambda record: messages.append(record.getMessage()) or False)
    training.order.load_state_dict({"a": [("last.weight", False)], "c": []})
    applied = training.order.apply()
    return applied, messages, sorted(training.run(range(2)).order.state_dict())


def test_the_order_of_other_parameters_is_not_applied_and_a_warning_says_so(ranks):
    """The module keeps the buckets that DDP builds."""
    for applied, messages, known in ranks(_changed, 3):
        assert applied == []
        assert len(messages) == 1
        assert messages[0].startswith("The first step of 'a' may differ in its last bits")
        assert known == ["a", "b", "c"]
