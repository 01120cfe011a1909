"""For every test, in every process that it starts."""

import os

# Threads that wait leave their core to the test that runs beside.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
