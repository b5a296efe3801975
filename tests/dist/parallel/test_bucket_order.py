"""Resuming exactly on three ranks or more, without a rehearsal."""

import random

import pytest
import torch
from torch import nn

import brain_dist


class _Crooked(nn.Module):
    """Uses its layers in another order than it makes them, so that DDP regroups them."""

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
    """A loop of an engineer's own: two modules under DDP, in several buckets each."""

    def __init__(self, kind, state=None, replay=True, rehearsals=0):
        torch.manual_seed(0)
        self.accumulation = 3 if kind == "accumulated" else 1
        self.modules = {"a": _Crooked(kind), "b": _Crooked("plain")}
        options = {"device": "cpu", "bucket_cap_mb": 0.01, **_OPTIONS[kind]}
        brain_dist.wrap_modules(self.modules, **options)
        self.order = brain_dist.GradientOrder(self.modules)
        parameters = [p for m in self.modules.values() for p in m.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-3)
        if rehearsals:
            brain_dist.rehearse(lambda: self.forward_backward(99), self.modules)
        if state is not None:
            for name, module in self.modules.items():
                module.load_state_dict(state[name])
            self.order.load_state_dict(state["order"])
            if replay:
                self.order.replay()

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
        """Say which parameters DDP reduces together, in which order."""
        self.run(range(2))  # it logs what it did in the step before
        key = "rebuilt_per_bucket_param_indices"
        return [m._get_ddp_logging_data().get(key) for m in self.modules.values()]


def _same(one, other):
    return all(torch.equal(one[n][k], other[n][k]) for n in "ab" for k in one[n])


def _resume(rank, kind):
    whole = _Training(kind).run(range(5))
    first = _Training(kind).run(range(2)).state()
    second = _Training(kind, first).run(range(2, 3)).state()
    third = _Training(kind, second).run(range(3, 5))
    without = _Training(kind, first, replay=False).run(range(2, 5))
    return (
        _same(whole.state(), third.state()),
        _same(whole.state(), without.state()),
        first["order"] == second["order"] == third.state()["order"] != {},
        whole.buckets() == third.buckets(),
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
    """Stopped twice: the same weights and the same buckets; without the order, other weights."""
    assert ranks(_resume, world_size, kind) == [(True, False, True, True, True)] * world_size


def _resume_early(rank):
    whole = _Training("plain").run(range(1)).run(range(1, 6))
    at_once = _Training("plain", _Training("plain").state()).run(range(6))
    after_one = _Training("plain", _Training("plain").run(range(1)).state()).run(range(1, 6))
    return _same(whole.state(), at_once.state()), _same(whole.state(), after_one.state())


def test_a_run_stopped_before_or_after_its_first_step_is_exact(ranks):
    """Before it there is no order yet, and the first step has to be a first step."""
    assert ranks(_resume_early, 3) == [(True, True)] * 3


def _late(rank):
    def begin():
        return _Training("plain").run(range(3), use=("a",))

    whole = begin().run(range(3, 8))
    saved = begin().state()
    resumed = _Training("plain", saved).run(range(3, 8))
    return (
        list(saved["order"]),
        list(resumed.order.state_dict()),
        _same(whole.state(), resumed.state()),
    )


def test_a_module_that_is_trained_later_is_exact_too(ranks):
    """Its order is not known at the stop, and is noted when it comes."""
    assert ranks(_late, 3) == [(["a"], ["a", "b"], True)] * 3


def _never_regrouped(rank):
    whole = _Training("unused").run(range(5)).state()
    half = _Training("unused").run(range(3)).state()
    resumed = _Training("unused", half).run(range(3, 5)).state()
    return half["order"], _same(whole, resumed)


def test_with_unused_parameters_ddp_never_regroups_and_nothing_is_noted(ranks):
    """A resumed run is exact by itself."""
    assert ranks(_never_regrouped, 3) == [({}, True)] * 3


def _static(rank):
    whole = _Training("static").run(range(5)).state()
    half = _Training("static").run(range(3)).state()
    plainly = _Training("static", half).run(range(3, 5)).state()
    rehearsed = _Training("static", half, rehearsals=1).run(range(3, 5)).state()
    return half["order"], _same(whole, plainly), _same(whole, rehearsed)


def test_a_static_graph_is_left_to_a_rehearsal(ranks):
    """There DDP regroups after the second step, by what it saw in the first."""
    assert ranks(_static, 3) == [({}, False, True)] * 3


def _traces(rank):
    order = _Training("plain").run(range(2)).order.state_dict()
    training = _Training("plain")
    # What a rank has of its own must not become rank 0's.
    training.modules["a"].module.norm.running_mean.fill_(rank)
    for module in training.modules.values():
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
    training.order.load_state_dict(order if rank == 0 else {})
    before = training.state()
    random.seed(0)
    expected = torch.get_rng_state(), random.getstate()
    done = training.order.replay()
    gradients = [p.grad for m in training.modules.values() for p in m.parameters()]
    return (
        done,
        all((g == 1).all().item() for g in gradients),
        _same(before, training.state()),
        torch.equal(torch.get_rng_state(), expected[0]) and random.getstate() == expected[1],
        [type(m.module).__name__ for m in training.modules.values()],
        training.order.replay(),  # nothing is done twice
    )


def test_a_replay_leaves_no_trace_and_follows_rank_0(ranks):
    """Gradients, buffers and random numbers stay; the others need not have loaded anything."""
    seen = (["a", "b"], True, True, True, ["_Crooked", "_Crooked"], ["a", "b"])
    assert ranks(_traces, 3) == [seen] * 3


def _hooks(rank):
    training = _Training("plain")
    parameters = [p for m in training.modules.values() for p in m.parameters()]
    with brain_dist.no_sync(training.modules):
        sum(m(torch.rand(8, 40)).sum() for m in training.modules.values()).backward()
    unsynchronised = training.order.state_dict()
    training.run(range(1))
    left = [hook for p in parameters for hook in (p._post_accumulate_grad_hooks or {})]
    left += [hook for m in training.modules.values() for hook in m._forward_hooks]
    came = [name for name, _ in training.order.state_dict()["a"]]
    return unsynchronised, left, came[:3], len(came)


def test_the_order_is_that_of_the_first_synchronised_backward_and_no_hook_stays(ranks):
    """The last layer's gradients come first."""
    seen = ({}, [], ["last.bias", "last.weight", "norm.weight"], 17)
    assert [(*r[:2], r[2], r[3]) for r in ranks(_hooks, 3)] == [seen] * 3


def _save(rank):
    return _Training("plain").run(range(2)).state()


def _go_on(rank, state):
    training = _Training("plain", state, replay=False)
    replayed = training.order.replay()
    return replayed, training.run(range(2)).order.state_dict() == state["order"]


def test_on_another_number_of_ranks_the_order_is_kept(ranks):
    """On two ranks and on one it does nothing, but it is not lost."""
    state = ranks(_save, 3)[0]
    assert ranks(_go_on, 4, state) == [(["a", "b"], True)] * 4
    assert ranks(_go_on, 2, state) == [([], True)] * 2
    alone = brain_dist.GradientOrder({"m": nn.Linear(1, 1)})
    alone.load_state_dict(state["order"])
    assert alone.replay() == []
    assert alone.state_dict() == state["order"]


def _changed(rank):
    import logging

    training = _Training("plain")
    said = []
    logger = logging.getLogger("brain_dist.parallel.bucket_order")
    logger.addFilter(lambda record: said.append(record.getMessage()) or False)
    training.order.load_state_dict({"a": [("last.weight", False)], "c": []})
    replayed = training.order.replay()
    return replayed, said, sorted(training.run(range(2)).order.state_dict())


def test_the_order_of_other_parameters_is_not_replayed_and_said(ranks):
    """The module keeps on with DDP's own grouping."""
    for replayed, said, known in ranks(_changed, 3):
        assert replayed == []
        assert len(said) == 1
        assert said[0].startswith("The first step of 'a' may differ in its last bits")
        assert known == ["a", "b", "c"]
