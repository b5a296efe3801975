"""Repeat requests to an object store, with growing and random pauses."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, TypeVar

from brain_ckpt.mirror.objects import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
_ATTEMPTS = 7  # up to about half a minute of pauses

# Training restores the state of Python's own generator, which pauses must not advance.
_random = random.SystemRandom()


def pause_s(failures: int) -> float:
    """Return the pause in seconds after so many failures in a row.

    It is drawn between zero and a limit that doubles, so that many clients do not return at once.
    """
    return _random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures, 30)))


def retry(
    request: Callable[[], T],
    attempts: int = _ATTEMPTS,
    wait: Callable[[float], object] = time.sleep,
) -> T:
    """Make a request, again after a failure that can pass.

    Parameters
    ----------
    request : callable
        The request.
    attempts : int
        How often to try.
    wait : callable
        Waits a number of seconds.

    Raises
    ------
    UnavailableError
        The last one, if all attempts fail.
    """
    for failures in range(1, attempts):
        try:
            return request()
        except UnavailableError as error:  # noqa: PERF203 - the loop retries
            pause = pause_s(failures)
            logger.info("%s; trying again in %.1f s", error, pause)
            wait(pause)
    return request()
