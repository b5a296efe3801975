"""Stop requests of one process."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

import brain_dist
from brain_dist import StopSignal
from brain_dist.stopping import signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_recorded_and_the_former_handler_is_restored(name):
    """The process continues, and knows which signal it got."""
    number = getattr(signal, name)
    former = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert stop.requested
        assert stop.reason == name
        stop.request("too late")
        assert stop.reason == name
    assert signal.getsignal(number) is former
    assert stop.requested


def test_handlers_are_restored_after_an_exception():
    """The block restores them in any case."""
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopSignal():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_process_forked_inside_ends_by_a_signal(ranks):
    """It has no loop that reads the request: a pool of workers could not be terminated."""
    assert ranks(_fork_and_terminate, 1) == [-signal.SIGTERM]


def _fork_and_terminate(rank):
    with StopSignal() as stop:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(10)
        assert not stop.requested
    return child.exitcode


@pytest.fixture
def sigint():
    """Set the default handler of SIGINT, unset in a shell's background; check it is restored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, former)


def test_the_first_interrupt_is_recorded_and_the_second_raises(sigint, capfd):
    """With interrupts=True, and a line on the terminal; after clear() the next one is the first."""
    with StopSignal(interrupts=True) as stop:
        sigint()
        assert stop.reason == "SIGINT"
        assert "again to exit at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            sigint()
        stop.clear()
        assert not stop.requested
        sigint()
        assert stop.requested


def test_an_interrupt_raises_at_once_by_default(sigint):
    """Recording interrupts is an option."""
    with StopSignal(), pytest.raises(KeyboardInterrupt):
        sigint()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_an_ignored_or_handled_interrupt_is_not_recorded(sigint, handler):
    """A run in the background of a shell, or a program with a handler of its own."""
    signal.signal(signal.SIGINT, handler)
    try:
        with StopSignal(interrupts=True) as stop:
            sigint()
            assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_forwarded_by_torchrun_is_not_a_second_one(sigint, monkeypatch):
    """A terminal interrupts torchrun too, which interrupts its ranks; a later one does raise."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    with StopSignal(interrupts=True) as stop:
        sigint()
        sigint()
        assert stop.reason == "SIGINT"
        monkeypatch.setattr(signals, "_FORWARDED_WITHIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            sigint()


class _Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        time.sleep(0.1)
        return index


def _signal_workers(rank, number, receivers):
    """Signal the workers of a loader in its first batch; return the batches that it still loads."""
    signals._MAIN_PROCESS_S = 0.3
    multiprocessing.set_start_method("fork", force=True)
    loader = torch.utils.data.DataLoader(
        _Slow(), num_workers=2, worker_init_fn=lambda _: brain_dist.shield_from_stop_signals()
    )
    with StopSignal() as stop:
        batches = iter(loader)
        first = next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
        if receivers == "all":
            os.kill(os.getpid(), number)
        try:
            rest = [int(batch) for batch in batches]
        except RuntimeError as error:
            return str(error).split(" (")[0]
        finally:
            del batches
        assert stop.requested == (receivers == "all")
        assert not any(p.is_alive() for p in multiprocessing.active_children())
    return [int(first), *rest]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_loaders_workers_survive_a_stop_signal_to_all_processes(ranks, name):
    """SLURM signals every process of a job; the batches up to the step boundary still load."""
    number = getattr(signal, name)
    assert ranks(_signal_workers, 1, number, "all") == [[0, 1, 2, 3, 4, 5]]


def test_a_worker_that_is_terminated_without_its_main_process_ends(ranks):
    """Process.terminate() has to work."""
    assert ranks(_signal_workers, 1, signal.SIGTERM, "workers") == ["DataLoader worker"]


def test_code_can_request_a_stop_and_the_first_reason_is_kept():
    """It works outside the block, too."""
    stop = StopSignal()
    stop.request("enough")
    stop.request("more than enough")
    assert (stop.requested, stop.reason) == (True, "enough")


def test_outside_the_main_thread_no_handler_is_installed():
    """Python allows handlers in the main thread only."""
    former = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopSignal() as stop:
            seen.append(signal.getsignal(signal.SIGTERM) is former)
            stop.request("here")
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, True]


def test_a_time_limit_is_a_request():
    """It counts from the start of the block."""
    stop = StopSignal(time_limit_s=0.02)
    time.sleep(0.03)
    assert not stop.requested
    with stop:
        assert not stop.requested
        time.sleep(0.03)
        assert stop.requested
    assert stop.reason == "time limit"


def test_a_time_limit_is_above_zero():
    """Zero would stop before the first step."""
    with pytest.raises(ValueError, match="above zero seconds, got 0"):
        StopSignal(time_limit_s=0)


def test_the_exit_code_for_requeueing_is_tempfail():
    """No failure of Python has this code."""
    assert brain_dist.EXIT_REQUEUE == 75
