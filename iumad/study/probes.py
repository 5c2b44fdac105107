"""What representations tell about an image: cross-validated linear probes, before and after the bottleneck.

The paper's Corollary 2 says that the bottleneck keeps what tells the category and drops what is redundant. A
trained network is a deterministic map, so the mutual information of its features with an image is no finite number
that could be measured. What a linear probe can use of it is (Xu et al., ICLR 2020), in bits and from below:

- category Y: H(Y) minus the cross-entropy of a logistic regression on images that it has not seen;
- a number such as the strength of a perturbation: -1/2 log2(1 - R^2) of a ridge regression on such images, which
  is the mutual information if both are Gaussian.

All versions of one image stay in one fold, so a probe cannot know an image again.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from iumad.errors import DataError

FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, chosen on the training folds
PENALTIES = tuple(
    10.0**power for power in range(-2, 6)
)  # of the ridge regression, chosen in the same way


def probe(
    representations: Mapping[str, Float[np.ndarray, "n _"]],
    targets: pd.DataFrame,
    groups: pd.Series,
) -> pd.DataFrame:
    """What each representation tells about each target.

    Parameters
    ----------
    representations : mapping
        Name -> one row of features an image, e.g. "before" and "after".
    targets : pandas.DataFrame
        One row an image. A column of text is a class, a column of numbers is regressed; where a value is missing,
        the image is left out for that target.
    groups : pandas.Series
        What the rows are versions of, e.g. the sample's id.

    Returns
    -------
    pandas.DataFrame
        representation, target, score (accuracy, or R^2), chance (of the largest class, or 0), bits (at least 0),
        possible (entropy of the classes in bits; missing for a number), n.

    Raises
    ------
    DataError
        The lengths differ, or a target has one value or fewer groups than folds.
    """
    lengths = {name: len(features) for name, features in representations.items()}
    lengths |= {"targets": len(targets), "groups": len(groups)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"one row an image is needed everywhere, got {lengths}")
    records = []
    for target in targets:
        known = targets[target].notna().to_numpy()
        values, within = targets[target][known], _numbered(groups[known])
        if values.nunique() < 2 or len(np.unique(within)) < FOLDS:
            raise DataError(
                f"target {target} needs 2 values and {FOLDS} groups, got {values.nunique()} and "
                f"{len(np.unique(within))}"
            )
        measure = _number if pd.api.types.is_numeric_dtype(values) else _classes
        for name, features in representations.items():
            chosen = np.asarray(features, dtype=np.float64)[known]
            records.append((name, target, *measure(chosen, values, within), len(values)))
    columns = ["representation", "target", "score", "chance", "bits", "possible", "n"]
    return pd.DataFrame(records, columns=columns)


def _classes(
    features: Float[np.ndarray, "n d"], values: pd.Series, groups: Int[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    labels = _numbered(values)
    shares = np.bincount(labels) / len(labels)
    told = np.full((len(labels), len(shares)), np.nan)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features, labels, groups):
        inner = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=0)
        model = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
            {"logisticregression__C": STRENGTHS},
            scoring="neg_log_loss",
            cv=inner,
        )
        model.fit(features[train], labels[train], groups=groups[train])
        told[test] = model.predict_proba(features[test])
    entropy = float(-(shares * np.log2(shares)).sum())
    bits = entropy - log_loss(labels, told) / np.log(2)
    accuracy = accuracy_score(labels, told.argmax(axis=1))
    return float(accuracy), float(shares.max()), max(float(bits), 0.0), entropy


def _number(
    features: Float[np.ndarray, "n d"], values: pd.Series, groups: Int[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    numbers = values.to_numpy(dtype=np.float64)
    told = np.full(len(numbers), np.nan)
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(
        features, groups=groups
    ):
        model = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": PENALTIES},
            cv=GroupKFold(INNER_FOLDS, shuffle=True, random_state=0),
        )
        model.fit(features[train], numbers[train], groups=groups[train])
        told[test] = model.predict(features[test])
    share = float(r2_score(numbers, told))
    bits = -0.5 * np.log2(1 - min(max(share, 0.0), 1 - 1e-12))
    return share, 0.0, float(bits), float("nan")


def _numbered(values: pd.Series) -> Int[np.ndarray, " n"]:
    return np.unique(values.astype(str).to_numpy(), return_inverse=True)[1].astype(np.int64)
