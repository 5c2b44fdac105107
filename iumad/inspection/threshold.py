"""Thresholds from a few good images, or from examples of defects, and what so few images can promise.

A score is compared on a logarithmic scale, on which scores of good images are nearly normal: distances are
positive and their spread grows with their size.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import stats

from iumad.errors import ConfigError

MIN_SCORE = 1e-12  # scores are distances; zero has no logarithm
CONFIDENCE = 0.9  # of the interval of the false alarm rate


class Threshold(BaseModel):
    """Where good ends for one category, and how sure that is.

    Attributes
    ----------
    value : float
        Scores above it are anomalous.
    good_scores : tuple of float
        Scores of good images that the model was not fitted on, rising.
    false_alarm_rate : float
        Of good images, the share that was asked for; for `defects`, that of the held-out ones.
    source : "good", "defects" or "given"
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    good_scores: tuple[float, ...] = Field(min_length=1)
    false_alarm_rate: float = Field(ge=0, lt=1)
    source: Literal["good", "defects", "given"] = "good"

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper-Pearson interval (90 %) of the false alarm rate, from the held-out good images alone."""
        n = len(self.good_scores)
        above = sum(score > self.value for score in self.good_scores)
        tail = (1 - CONFIDENCE) / 2
        low = stats.beta.ppf(tail, above, n - above + 1) if above else 0.0
        high = stats.beta.ppf(1 - tail, above + 1, n - above) if above < n else 1.0
        return float(low), float(high)

    def normalised(self, score: float) -> float:
        """A score as a number in (0, 1): 0.5 at the threshold, 0.05 where good images lie on average, or below.

        A logistic curve of the logarithm of the score.
        """
        typical = float(np.mean(_logs(self.good_scores)))
        distance = max(math.log(max(self.value, MIN_SCORE)) - typical, 1e-3)
        steepness = math.log(19) / distance  # 19 to 1 at the typical good score
        x = steepness * (math.log(max(score, MIN_SCORE)) - math.log(max(self.value, MIN_SCORE)))
        return float(1 / (1 + math.exp(-min(max(x, -30.0), 30.0))))


def threshold_from_good(scores: Sequence[float], false_alarm_rate: float) -> Threshold:
    """The score that a new good image exceeds with the given probability.

    With n scores no order statistic can promise less than 1 / (n + 1). So the threshold is the upper prediction
    limit of a normal distribution fitted to their logarithms (Student's t with n - 1 degrees of freedom), and
    never below what the order of the scores says where n is large enough to say it.

    Parameters
    ----------
    scores : sequence of float
        Of good images that the model was not fitted on; at least two.
    false_alarm_rate : float
        In (0, 0.5].

    Raises
    ------
    ConfigError
        Fewer than two scores, or a rate outside (0, 0.5].
    """
    if not 0 < false_alarm_rate <= 0.5:
        raise ConfigError(f"false alarm rate: needs a number in (0, 0.5], got {false_alarm_rate}")
    if len(scores) < 2:
        raise ConfigError(
            f"a threshold needs at least 2 held-out good images of a category, got {len(scores)}"
        )
    logs, n = np.sort(_logs(scores)), len(scores)
    spread = max(float(logs.std(ddof=1)), 1e-6)
    limit = stats.t.ppf(1 - false_alarm_rate, n - 1) * spread * math.sqrt(1 + 1 / n)
    value = float(logs.mean() + limit)
    rank = math.ceil((n + 1) * (1 - false_alarm_rate))
    if rank <= n:
        value = max(value, float(logs[rank - 1]))
    return Threshold(
        value=math.exp(
            min(value, 300.0)
        ),  # two scores and a small rate ask for more than floats hold
        good_scores=tuple(sorted(float(score) for score in scores)),
        false_alarm_rate=false_alarm_rate,
    )


def threshold_from_defects(
    good: Sequence[float], defects: Sequence[float], miss_cost: float = 1.0
) -> Threshold:
    """The threshold with the lowest cost on examples: one for a false alarm, `miss_cost` for a miss.

    It lies in the middle between two neighbouring scores; of equally good places the highest is taken, which has
    the fewest false alarms.

    Raises
    ------
    ConfigError
        There are no good or no defective examples, or the cost is not positive.
    """
    if not good or not defects:
        raise ConfigError(
            f"needs good and defective examples, got {len(good)} good and {len(defects)} defective"
        )
    if not miss_cost > 0:
        raise ConfigError(f"the cost of a miss must be positive, got {miss_cost}")
    places = np.unique(np.concatenate([good, defects]))
    middles = np.sqrt(np.maximum(places[:-1], MIN_SCORE) * np.maximum(places[1:], MIN_SCORE))
    candidates = np.concatenate([[places[0] * (1 - 1e-9)], middles, [places[-1]]])
    false_alarms = (np.asarray(good)[None] > candidates[:, None]).sum(axis=1)
    misses = (np.asarray(defects)[None] <= candidates[:, None]).sum(axis=1)
    cost = false_alarms + miss_cost * misses
    best = len(cost) - 1 - int(np.argmin(cost[::-1]))
    return Threshold(
        value=max(float(candidates[best]), MIN_SCORE),
        good_scores=tuple(sorted(float(score) for score in good)),
        false_alarm_rate=min(float(false_alarms[best] / len(good)), 1 - 1e-9),
        source="defects",
    )


def promise(threshold: Threshold) -> str:
    """What the number of held-out good images allows to say, in one sentence."""
    n, (low, high) = len(threshold.good_scores), threshold.interval
    above = sum(score > threshold.value for score in threshold.good_scores)
    said = f"{above} of {n} held-out good images lie above it: {100 * low:.0f} to {100 * high:.0f} % false alarms"
    if n + 1 < 1 / threshold.false_alarm_rate and threshold.source == "good":
        said += f"; {100 * threshold.false_alarm_rate:g} % rests on the shape of their distribution"
    return said


def _logs(scores: Sequence[float]) -> np.ndarray:
    return np.log(np.maximum(np.asarray(scores, dtype=np.float64), MIN_SCORE))
