"""How long a run takes, beside what was planned."""

from __future__ import annotations


class Plan:
    """Tells when the expected end of a run of `steps`, in `seconds`, moves by more than a quarter.

    step : where it begins, after `spent` seconds. now : the time then.
    """

    def __init__(self, steps, seconds, step, spent, now):
        self.steps, self.planned, self.told = steps, seconds, seconds
        self.begin, self.window, self.last = now - spent, min(60.0, seconds / 10), (step, now)

    def look(self, step, now) -> str | None:
        """What there is to tell after a step."""
        before, then = self.last
        if now - then < self.window:
            return None
        self.last = step, now
        expected = now - self.begin + (self.steps - step) * (now - then) / (step - before)
        if abs(expected / self.told - 1) <= 0.25:
            return None
        self.told, slower = expected, expected > self.planned
        return (
            f"note: training will take about {expected / 60:.2g} minutes in all, not "
            f"{self.planned / 60:.2g} as planned: a step takes {'more' if slower else 'less'} time "
            "than when the first ones were timed"
        )
