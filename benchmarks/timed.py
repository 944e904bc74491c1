"""CPU seconds: user and system time, which other processes disturb less than the clock."""

import resource
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    """Of a call, in this process."""
    began = time.process_time()
    function()
    return time.process_time() - began


def seconds_of_children(function: Callable[[], object]) -> float:
    """Of the processes that a call starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    function()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
