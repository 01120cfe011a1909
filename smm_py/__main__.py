"""`python -m smm_py`: what a report of a bug needs."""

from ._config import show_config

show_config()
