"""Before anything imports torch: threads that wait must sleep, or two busy processes bring each other to a stop."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
