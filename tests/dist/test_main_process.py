"""Functions that one process runs for the others."""

import time

import numpy as np
import pytest
import torch

import brain_dist


def _count(rank, calls):
    @brain_dist.main_process_only
    def work(n, *, plus):
        """Add."""
        calls.append(rank)
        return n + plus

    return work(1, plus=2), calls, work.__name__, work.__doc__


def test_main_process_only_runs_on_rank_0_and_returns_everywhere(ranks):
    """Every rank gets the result of rank 0."""
    assert ranks(_count, 2, []) == [(3, [0], "work", "Add."), (3, [], "work", "Add.")]


def test_in_one_process_each_helper_calls_the_function():
    """Post functions run only where they are asked to run on the main process."""
    log = []
    assert brain_dist.main_process_only(lambda: 1)() == 1
    assert brain_dist.once_per_node(lambda: 2)() == 2
    assert brain_dist.run_on_main(max, [1, 5], post_func=log.append, post_args=["no"]) == 5
    assert (
        brain_dist.run_on_main(
            max, [1, 5], {"key": abs}, log.append, ["yes"], run_post_on_main=True
        )
        == 5
    )
    assert brain_dist.run_once_per_node(max, [1, 5], post_func=log.append, post_args=["no"]) == 5
    assert brain_dist.run_once_per_node(max, [1, 5], None, len, ["abc"], run_post_on_all=True) == 3
    assert log == ["yes"]


@pytest.mark.parametrize("arguments", [np.arange(2), torch.ones(2), (0, 1), range(2), "ab"])
def test_arguments_are_any_sequence(arguments):
    """An array has no truth value, and is taken all the same."""
    first, second = arguments
    taken = []
    run = brain_dist.run_on_main
    assert run(lambda a, b: (a, b), arguments) == (first, second)
    run(
        lambda: None,
        None,
        None,
        lambda a, b: taken.append((a, b)),
        arguments,
        run_post_on_main=True,
    )
    run = brain_dist.run_once_per_node
    assert run(lambda a, b: (a, b), arguments) == (first, second)
    run(
        lambda: None, None, None, lambda a, b: taken.append((a, b)), arguments, run_post_on_all=True
    )
    assert taken == [(first, second)] * 2


def _fail_on_main(rank, error):
    def work():
        raise error

    started = time.monotonic()
    try:
        brain_dist.run_on_main(work)
    except (OSError, KeyboardInterrupt, SystemExit) as caught:
        cause = str(caught.__cause__ or "")
        took_s = time.monotonic() - started
        return type(caught).__name__, caught.args, "in work" in cause, took_s < 5
    return None


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "gone"), KeyboardInterrupt(), SystemExit(4)]
)
def test_an_exception_on_rank_0_is_raised_on_all_ranks_at_once(ranks, error):
    """In SpeechBrain the other ranks wait in a broadcast for two hours."""
    expected = (type(error).__name__, error.args)
    results = ranks(_fail_on_main, 2, error)
    assert results == [(*expected, False, True), (*expected, True, True)]


def _nested(rank):
    def work():
        brain_dist.ddp_barrier()
        inner = brain_dist.run_on_main(lambda: "inner")
        return inner, brain_dist.gather_objects(7), brain_dist.once_per_node(lambda: "node")()

    return brain_dist.run_on_main(work), len(brain_dist.gather_objects(rank))


def test_collectives_inside_return_their_argument(ranks):
    """A barrier in a function that only rank 0 runs would wait for ever."""
    assert ranks(_nested, 2) == [(("inner", [7], "node"), 2)] * 2


def _post(rank, on_main):
    log = []
    result = brain_dist.run_on_main(
        lambda: 9, post_func=log.append, post_args=[rank], run_post_on_main=bool(on_main)
    )
    return result, log


def test_the_post_function_runs_on_the_other_ranks(ranks):
    """On rank 0 too with run_post_on_main."""
    assert ranks(_post, 2, 0) == [(9, []), (9, [1])]
    assert ranks(_post, 2, 1) == [(9, [0]), (9, [1])]


def _post_fails(rank):
    def load():
        raise OSError("cannot read it")

    with pytest.raises(OSError, match=r"cannot read it \(on rank 1 of 2\)"):
        brain_dist.run_on_main(lambda: 9, post_func=load)
    return True


def test_an_exception_in_the_post_function_is_raised_on_all_ranks(ranks):
    """Rank 0 does not continue without the others."""
    assert ranks(_post_fails, 2) == [True, True]


def _per_node(rank):
    node = brain_dist.once_per_node(lambda: rank)()
    both = brain_dist.run_once_per_node(lambda: ("wrote", rank), post_func=lambda: ("read", rank))
    return node, both


def test_once_per_node_runs_in_the_first_process_of_each_machine(ranks):
    """Here LOCAL_RANK says that every rank is the first of its machine, or that one is."""
    assert ranks(_per_node, 2) == [(0, ("wrote", 0)), (None, ("read", 1))]
    two_machines = ranks(_per_node, 2, environ={"LOCAL_RANK": "0"})
    assert two_machines == [(0, ("wrote", 0)), (1, ("wrote", 1))]


def _node_fails(rank):
    def work():
        raise ValueError("disk full")

    with pytest.raises(ValueError, match=r"disk full \(on rank 0 of 2\)"):
        brain_dist.once_per_node(work)()
    return brain_dist.gather_objects(rank)


def test_an_exception_on_one_machine_is_raised_on_all_ranks(ranks):
    """No rank waits for a file that will not be written."""
    assert ranks(_node_fails, 2) == [[0, 1]] * 2


def test_without_a_group_the_other_ranks_continue_with_a_warning(monkeypatch, caplog):
    """Under torchrun, before ddp_init_group; only rank 0 runs the function."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert brain_dist.run_on_main(print, ["ran"]) is None
    assert "Rank 1 continues without the result of print" in caplog.text
    assert "ddp_init_group" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RANK", "0")
    assert brain_dist.run_on_main(max, [1, 2]) == 2
    assert not caplog.text
