"""No test asks the hub, for which a machine without one would wait; and Ctrl-C stops what tests start.

Properties are tried on the same few examples in every run; ``--hypothesis-profile thorough`` tries a thousand
new ones each.
"""

import os
import signal

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
# whoever starts the tests in the background lets them, and all that they start, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)

# no deadline: the first example imports torch. Neither do fixtures change between examples
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile("quick")
