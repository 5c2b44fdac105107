"""Gates before any verdict: whether a model was trained well enough to be judged.

Three questions about every method, modality and setting, all asked of each category right after the step that
learnt it, so that forgetting, which is an outcome, is not taken for a lack of training:

- *floors*: is image AUROC at least 10 points above the best of the floors, methods without training (`floor-*`)?
- *classifier*: does the method name the right category for at least 95 % of good test images?
- *new categories*: is image AUROC of the increments' categories within 5 points of that of the same method when it
  learns all categories at once (its run of one step, else `joint`)?

A gate whose runs are absent is *not measured*, and its verdict says so.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from iumad.study.results import RUN_COLUMNS, as_learnt

MET, MISSED, UNMEASURED, INAPPLICABLE = "met", "missed", "not measured", "does not apply"
FLOOR, JOINT = "floor-", "joint"  # method names
METRIC, ACCURACY = "i_auroc", "accuracy"
ABOVE_FLOORS, RIGHT, BELOW_JOINT = 0.10, 0.95, 0.05

_CELL = ["method", "modality", "setting"]
COLUMNS = [*_CELL, "gate", "value", "needed", "state", "text"]


def measure_gates(rows: pd.DataFrame, references: pd.DataFrame | None = None) -> pd.DataFrame:
    """Measure all gates of all methods of a study.

    Parameters
    ----------
    rows : pandas.DataFrame
        Result rows (`iumad.study.results.ROW_SCHEMA`) of the study.
    references : pandas.DataFrame, optional
        Rows of other studies with the same data and training, in which floors and runs of one step are looked for
        where the study has none.

    Returns
    -------
    pandas.DataFrame
        method, modality, setting, gate, value (mean over seeds), needed, state ("met", "missed", "not measured" or
        "does not apply"), text. Floors have no line.
    """
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    own = _learnt(rows)
    other = own if references is None else _learnt(references)
    records = []
    for cell in own.levels:
        if not cell[0].startswith(FLOOR):
            for gate, measured in {
                "floors": _above_floors(cell, own, other),
                "classifier": _classifier(cell, own),
                "new categories": _below_joint(cell, own, other),
            }.items():
                records.append((*cell, gate, *measured))
    return pd.DataFrame(records, columns=COLUMNS)


def of_cells(gates: pd.DataFrame, cells: list[tuple[str, str, str]]) -> pd.DataFrame:
    """The gates of some (method, modality, setting); a cell without rows has none."""
    return gates[pd.MultiIndex.from_frame(gates[_CELL]).isin(cells)]


@dataclass(frozen=True)
class _Learnt:
    """What each category reached right after the step that learnt it, by cell (method, modality, setting).

    Attributes
    ----------
    levels, accuracies : dict
        Cell -> mean over categories of image AUROC, and of the classifier's accuracy, by seed.
    new : dict
        Cell -> image AUROC of the increments' categories, by seed and category.
    at_once : dict
        Method and modality -> image AUROC of runs of one step, by seed and category.
    """

    levels: dict[tuple, pd.Series]
    accuracies: dict[tuple, pd.Series]
    new: dict[tuple, pd.Series]
    at_once: dict[tuple, pd.Series]


def _learnt(rows: pd.DataFrame) -> _Learnt:
    rows = rows[rows["metric"].isin([METRIC, ACCURACY])]
    steps = rows.groupby(RUN_COLUMNS)["step"]
    first, last = steps.transform("min"), steps.transform("max")
    table = as_learnt(rows.assign(later=rows["step"] > first, single=first == last))
    scores, named = table[table["metric"] == METRIC], table[table["metric"] == ACCURACY]
    new, at_once = scores[scores["later"]], scores[scores["single"]]

    def means(part: pd.DataFrame) -> dict[tuple, pd.Series]:
        return {
            keys: cell.groupby("seed")["value"].mean(skipna=False)
            for keys, cell in part.groupby(_CELL, sort=False)
        }

    def values(part: pd.DataFrame, by: list[str]) -> dict[tuple, pd.Series]:
        return {
            keys: cell.drop_duplicates(["seed", "category"]).set_index(["seed", "category"])[
                "value"
            ]
            for keys, cell in part.groupby(by, sort=False)
        }

    return _Learnt(means(scores), means(named), values(new, _CELL), values(at_once, _CELL[:2]))


def _above_floors(cell: tuple[str, str, str], own: _Learnt, other: _Learnt) -> tuple:
    method, modality, setting = cell
    for source in (own, other):
        floors = {
            keys: values
            for keys, values in source.levels.items()
            if keys[0].startswith(FLOOR) and keys[1] == modality
        }
        here = {keys: values for keys, values in floors.items() if keys[2] == setting}
        gains = {
            name: (own.levels[cell] - values).mean()
            for (name, *_), values in (here or floors).items()
        }
        gains = {name: gain for name, gain in gains.items() if not np.isnan(gain)}
        if gains:
            name = min(gains, key=lambda key: gains[key])
            text = f"{_named(cell)} is {100 * gains[name]:.1f} points above {name}, 10 are needed"
            return _measured(gains[name], ABOVE_FLOORS, text)
    return _unmeasured(f"{method} ({modality}): no floors of its seeds")


def _classifier(cell: tuple[str, str, str], own: _Learnt) -> tuple:
    method, modality, _ = cell
    if not own.accuracies:
        return _unmeasured(f"{method} ({modality}): accuracy of the classifier")
    if cell not in own.accuracies:
        return np.nan, RIGHT, INAPPLICABLE, f"{method} has no classifier"
    accuracy = own.accuracies[cell].mean()
    text = f"{_named(cell)} names {100 * accuracy:.1f} % of good images right, 95 % are needed"
    return _measured(accuracy, RIGHT, text)


def _below_joint(cell: tuple[str, str, str], own: _Learnt, other: _Learnt) -> tuple:
    method, modality, _ = cell
    if cell not in own.new:
        return np.nan, -BELOW_JOINT, INAPPLICABLE, f"{method} learns all categories at once"
    new = own.new[cell]
    for source in (own, other):
        for name in (method, JOINT):
            if (name, modality) in source.at_once:
                gaps = new - source.at_once[name, modality].reindex(new.index)
                gap = gaps.groupby("seed").mean().mean()
                if np.isnan(gap):
                    continue
                whose = JOINT if name == JOINT else "its joint training"
                text = (
                    f"{_named(cell)} is {100 * gap:+.1f} points from {whose} on new categories, "
                    f"-5 is allowed"
                )
                return _measured(gap, -BELOW_JOINT, text)
    return _unmeasured(f"{method} ({modality}): no run of its seeds learns all categories at once")


def _named(cell: tuple[str, str, str]) -> str:
    method, modality, setting = cell
    return f"{method} ({modality}, {setting})"


def _measured(value: float, needed: float, text: str) -> tuple:
    return value, needed, MET if value >= needed else MISSED, text


def _unmeasured(text: str) -> tuple:
    return np.nan, np.nan, UNMEASURED, text
