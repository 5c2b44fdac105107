"""Tables and messages of the command line."""

import sys
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

SUMMARY = ("i_auroc", "p_auroc", "aupro", "accuracy", "fm_i_auroc", "fm_aupro")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def print_summary(rows: pd.DataFrame) -> None:
    """Means over categories after the last step, and forgetting, of every run."""
    from iumad.study.results import final_table

    keys = ["method", "modality", "setting", "seed"]
    table = final_table(rows)
    table = table[table["metric"].isin(SUMMARY)]
    print_table(
        table.pivot_table(index=keys, columns="metric", values="value", sort=False).reset_index()
    )


def print_table(frame: pd.DataFrame) -> None:
    """Print a table, whole where the output is not a terminal."""
    table = Table(*[str(column) for column in frame.columns], box=None, header_style="bold")
    for row in frame.itertuples(index=False):
        table.add_row(*[_cell(value) for value in row])
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4f}"
    return escaped(str(value))


def escaped(text: str) -> str:
    """Text in which square brackets are not markup."""
    return text.replace("[", r"\[")
