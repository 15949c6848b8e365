"""Times calls that return arrays of the device, and formats durations."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from asap_jax.host import processes


def seconds_of(call: Callable[[], Any], *, budget: float, least: int = 1, most: int = 20) -> float:
    """Median seconds of a call, each awaited.

    Args:
      call: () -> arrays; compiled and warmed up before.
      budget: seconds after which no further call starts.
      least, most: number of calls, `least` whatever they take.
    """
    seconds, begin = [], time.perf_counter()

    def more():
        if len(seconds) < least:
            return True
        return len(seconds) < most and time.perf_counter() - begin + seconds[-1] <= budget

    while processes.agreed(more()):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def duration(seconds: float) -> str:
    """Formats seconds, such as "1 h 2 min" or "0.4 s"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
