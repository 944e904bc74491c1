"""No test asks the hub, for which a machine without one would wait; and Ctrl-C stops what tests start."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
# whoever starts the tests in the background lets them, and all that they start, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
