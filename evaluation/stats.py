"""Means over categories and bootstrap intervals over prompts; pure numpy.

P prompts, R resamples. A score is a mean over the prompts of a category, then over categories, as GenEval's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # per cent
ONE_SIDED = 95.0  # per cent


class Prompts:
    """Prompts of an evaluation by category, and resamples of them that are the same for all that is compared."""

    def __init__(self, tags: Sequence[str]) -> None:
        """`tags` are (P,), the category of each prompt."""
        rng = np.random.default_rng(0)
        self.names = list(dict.fromkeys(tags))
        self._members = [np.flatnonzero(np.array(tags) == name) for name in self.names]
        self._picks = [rng.choice(group, (RESAMPLES, len(group))) for group in self._members]

    def by_category(self, values: Floats) -> dict[str, float]:
        """Mean of each category.  # (P,)"""
        return {name: float(values[group].mean()) for name, group in zip(self.names, self._members, strict=True)}

    def mean(self, values: Floats) -> float:
        """Mean of the categories' means.  # (P,)"""
        return float(np.mean(list(self.by_category(values).values())))

    def interval(self, values: Floats) -> tuple[float, float]:
        """95 % of the mean, prompts resampled within their categories; paired if given a difference.  # (P,)"""
        low, high = np.percentile(self._spread(values), INTERVAL)
        return float(low), float(high)

    def upper_bound(self, values: Floats) -> float:
        """One-sided 95 % bound of the mean from above.  # (P,)"""
        return float(np.percentile(self._spread(values), ONE_SIDED))

    def _spread(self, values: Floats) -> Floats:  # (R,)
        return np.asarray(np.mean([values[pick].mean(1) for pick in self._picks], axis=0))
