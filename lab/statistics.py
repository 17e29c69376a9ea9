"""Intervals for measured rates."""

from scipy.stats import beta


def clopper_pearson(hits: int, trials: int, confidence: float = 0.95) -> dict[str, float | int]:
    """A rate with its exact two-sided interval (Clopper and Pearson 1934).

    Returns:
        `rate`, `low`, `high` and `n`.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} of {trials} is no rate")
    outside = (1 - confidence) / 2
    low = float(beta.ppf(outside, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - outside, hits + 1, trials - hits)) if hits < trials else 1.0
    return {"rate": hits / trials, "low": low, "high": high, "n": trials}
