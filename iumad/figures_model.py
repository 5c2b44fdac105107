"""Figures of what a model is made of: a table in, a matplotlib figure out."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from iumad.style import in_style


@in_style
def card_bars(card: pd.DataFrame) -> Figure:
    """Draw parameters and operations of each part of a model.

    Parameters
    ----------
    card : pandas.DataFrame
        Table of `iumad.model_card.model_card`; its last row, the sum, is not drawn.
    """
    parts = card[card["part"] != "all"].assign(millions=lambda table: table["parameters"] / 1e6)
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.3 * len(parts) + 1), sharey=True)
    columns = {"millions": "parameters, millions", "gflops": "operations, 10⁹ for one image"}
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        sns.barplot(parts, x=column, y="part", color="#4477aa", ax=axis)
        axis.bar_label(axis.containers[0], fmt="%.2f", padding=3, fontsize="small")
        axis.margins(x=0.15)
        axis.set(xlabel=label, ylabel="")
    return figure
