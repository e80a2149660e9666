"""What was measured on one side."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Samples:
    """Name of the figure → values of all runs."""

    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, value: float) -> None:
        self.values[name].append(value)

    def has(self, name: str) -> bool:
        return bool(self.values.get(name))

    def median(self, name: str) -> float:
        """Return the median of a figure that was measured."""
        return statistics.median(self.values[name])
