"""Published sizes of MVTec 3D-AD and Eyecandies, and what a copy on disk has more or less.

Counts as in Bergmann et al., "The MVTec 3D-AD Dataset for Unsupervised 3D Anomaly Detection and
Localization" (VISAPP 2022) and Bonfiglioli et al., "The Eyecandies Dataset" (ACCV 2022). Eyecandies
publishes no counts per kind of defect, so its defects are counted together, as ``bad``.
"""

import pandas as pd

from iumad.data.sample import GOOD

BAD = "bad"

# category: (train, validation, good test images, {defect: test images})
MVTEC_3D_AD: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "bagel": (244, 22, 22, {"combined": 23, "contamination": 22, "crack": 22, "hole": 21}),
    "cable_gland": (223, 23, 21, {"bent": 21, "cut": 22, "hole": 22, "thread": 22}),
    "carrot": (
        286,
        29,
        27,
        {"combined": 27, "contamination": 27, "crack": 26, "cut": 26, "hole": 26},
    ),
    "cookie": (210, 22, 28, {"combined": 25, "contamination": 25, "crack": 27, "hole": 26}),
    "dowel": (288, 34, 26, {"bent": 27, "combined": 26, "contamination": 26, "cut": 25}),
    "foam": (236, 27, 20, {"color": 20, "combined": 20, "contamination": 20, "cut": 20}),
    "peach": (361, 42, 26, {"combined": 25, "contamination": 27, "cut": 25, "hole": 29}),
    "potato": (300, 33, 22, {"combined": 23, "contamination": 23, "cut": 23, "hole": 23}),
    "rope": (298, 33, 32, {"contamination": 25, "cut": 27, "open": 17}),
    "tire": (210, 29, 25, {"combined": 5, "contamination": 28, "cut": 27, "hole": 27}),
}
# category: (good, bad) of test_public; train 1000 and val 100 for all
EYECANDIES: dict[str, tuple[int, int]] = {
    "CandyCane": (25, 25),
    "ChocolateCookie": (25, 25),
    "ChocolatePraline": (25, 25),
    "Confetto": (25, 25),
    "GummyBear": (26, 24),
    "HazelnutTruffle": (25, 25),
    "LicoriceSandwich": (25, 25),
    "Lollipop": (34, 16),
    "Marshmallow": (25, 25),
    "PeppermintCandy": (25, 25),
}
_KEYS = ["category", "split", "defect"]


def published_counts(dataset: str) -> pd.DataFrame:
    """Return the published sizes of ``"mvtec3d"`` or ``"eyecandies"``.

    Returns
    -------
    DataFrame
        Columns category, split, defect, published.
    """
    rows: list[tuple[str, str, str, int]] = []
    if dataset == "mvtec3d":
        for category, (train, validation, good, defects) in MVTEC_3D_AD.items():
            rows += [(category, "train", GOOD, train), (category, "validation", GOOD, validation)]
            rows += [
                (category, "test", defect, n) for defect, n in ({GOOD: good} | defects).items()
            ]
    elif dataset == "eyecandies":
        for category, (good, bad) in EYECANDIES.items():
            rows += [(category, "train", GOOD, 1000), (category, "validation", GOOD, 100)]
            rows += [(category, "test", GOOD, good), (category, "test", BAD, bad)]
    return pd.DataFrame(rows, columns=[*_KEYS, "published"])


def compare_with_published(index: pd.DataFrame, dataset: str) -> pd.DataFrame | None:
    """List where the copy on disk differs from the published data set.

    Parameters
    ----------
    index
        Index of the data set on disk.
    dataset
        ``"mvtec3d"`` or ``"eyecandies"``.

    Returns
    -------
    DataFrame or None
        Columns category, split, defect, published, found, one row for each count that differs,
        categories that are missing as a whole included; empty for a complete copy. None where most
        categories of the index are not published ones: then it is another data set in the same
        layout.
    """
    published = published_counts(dataset)
    known = pd.Series(index["category"].unique()).isin(published["category"])
    if published.empty or known.mean() < 0.5:
        return None
    defect = index["defect"]
    if dataset == "eyecandies":
        defect = defect.where(defect == GOOD, BAD)
    found = index.assign(defect=defect).groupby(_KEYS).size().rename("found").reset_index()
    both = published.merge(found, how="outer", on=_KEYS).fillna({"published": 0, "found": 0})
    both = both.astype({"published": int, "found": int})
    return both[both["published"] != both["found"]].reset_index(drop=True)
