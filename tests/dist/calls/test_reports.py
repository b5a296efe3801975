"""What ranks report about their calls."""

import pytest
from torch import distributed

from brain_dist.calls import reports
from brain_dist.calls.reports import CallReports, out_of_step_message


@pytest.fixture
def reports_of():
    """Return a function that makes the reports of a rank, all in one store."""
    store = distributed.HashStore()
    return lambda rank, world_size=3: CallReports(store, "operation", rank, world_size)


@pytest.mark.parametrize(
    ("calls", "unreported", "text"),
    [
        (
            {0: "fit() at a:1", 1: "save() at b:2"},
            [],
            "rank 0 is in fit() at a:1, rank 1 in save() at b:2",
        ),
        ({1: "fit()", 0: "save()", 2: "fit()"}, [], "rank 0 is in save(), ranks 1, 2 in fit()"),
        ({0: "fit()", 1: "fit()", 2: "save()"}, [], "ranks 0, 1 are in fit(), rank 2 in save()"),
        ({1: "fit()"}, ["ddp_barrier"], "rank 1 is in fit(), another rank in ddp_barrier()"),
    ],
)
def test_the_message_names_ranks_by_call(calls, unreported, text):
    """The lowest rank first."""
    named = {rank: (call.partition("(")[0], call) for rank, call in calls.items()}
    message = out_of_step_message(named, unreported)
    assert message == f"the ranks are out of step: {text}: call it on every rank"


def test_ranks_with_the_same_call_do_not_differ(reports_of):
    """Wherever they call it."""
    reports_of(0).report("fit", "fit() at a:1")
    reports_of(1).report("fit", "fit() at b:2")
    assert not reports_of(2).differ()


def test_every_rank_reads_the_calls_of_all(reports_of, monkeypatch):
    """Those that have reported."""
    monkeypatch.setattr(reports, "_ACKNOWLEDGE_S", 0.0)
    reports_of(0).report("fit", "fit() at a:1")
    reports_of(2).report("save", "save() at b:2")
    expected = {0: ("fit", "fit() at a:1"), 2: ("save", "save() at b:2")}
    for rank in (0, 2):
        assert reports_of(rank).differ()
        assert reports_of(rank).read() == expected


def test_of_many_ranks_two_that_differ_are_read(reports_of, monkeypatch):
    """Reading every report would burden the store."""
    monkeypatch.setattr(reports, "_ACKNOWLEDGE_S", 0.0)
    for rank in range(40):
        reports_of(rank, 40).report("save" if rank in (7, 8) else "fit", f"call {rank}")
    reports_of(0, 40).wait_for_all(60.0)
    assert reports_of(0, 40).read() == {0: ("fit", "call 0"), 7: ("save", "call 7")}


def test_a_report_that_is_withdrawn_leaves_no_key(reports_of):
    """After an operation that all ranks have joined."""
    reports = reports_of(0)
    reports.report("fit", "fit() at a:1")
    reports.withdraw()
    assert not reports._store.check(["operation/0"])
    assert not reports._store.check(["operation/first"])
