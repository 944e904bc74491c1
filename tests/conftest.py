"""No test asks the hub, for which a machine without one would wait; and Ctrl-C stops what tests start.

Properties are tried on the same few examples in every run; ``--hypothesis-profile thorough`` tries a thousand
new ones each.

Configs of tests may name the classes of tests, in this process; in another one with ``--trust tests``.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from alignkit.trust import trusting

os.environ["HF_HUB_OFFLINE"] = "1"
# MKL picks its kernels by processor and by where a tensor lies in memory; with this its sums have the same
# bits wherever they are made, as tests of equal weights need
os.environ["MKL_CBWR"] = "COMPATIBLE"
# whoever starts the tests in the background lets them, and all that they start, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)

# no deadline: the first example imports torch. Neither do fixtures change between examples
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="session")
def _tests_are_trusted() -> Iterator[None]:
    with trusting(["tests"]):
        yield
