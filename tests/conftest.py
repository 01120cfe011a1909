"""For every test, in every process that it starts."""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # threads that wait leave their core to the test that runs beside
