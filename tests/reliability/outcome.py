"""What a check found."""

import traceback
from dataclasses import dataclass, field

MOST_TOLD = 20  # defects of a check that are described


@dataclass
class Outcome:
    """counts: what was counted -> how many. skipped: why nothing was, or ""."""

    counts: dict[str, int] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""

    def count(self, what, number=1):
        self.counts[what] = self.counts.get(what, 0) + number

    def defect(self, text):
        if len(self.defects) < MOST_TOLD:
            self.defects.append(text)

    def expect(self, holds, text):
        if not holds:
            self.defect(text)


def last_line(error):
    """An exception, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename.split('/')[-1]}:{place.lineno})"
