"""Pages made from files: how to cite, when notebooks were executed, what changed; and two studies side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml

from iumad.report.style import Html, box, fill, fold, table
from iumad.study.compare import Comparison

UNKNOWN = "-"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem auto; max-width: 66rem; color: #222; }}
.box {{ border-left: 4px solid #0072b2; background: #f4f4f4; padding: .5em 1em; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }}
.number {{ text-align: right; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def write_pages(root: Path, executed: Sequence[Path], folder: Path) -> None:
    """Write the parts that the pages `cite`, `executions` and `changes` include.

    Parameters
    ----------
    root : Path
        The repository: CITATION.cff and CHANGELOG.md.
    executed : sequence of Path
        Executed notebooks.
    folder : Path
        Is made; `citation.bib`, `executions.txt` and `changes.txt` go there.
    """
    folder.mkdir()
    (folder / "executions.txt").write_text(executions(executed), encoding="utf-8")
    if (root / "CITATION.cff").exists():
        content = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        (folder / "citation.bib").write_text(bibtex(content), encoding="utf-8")
    if (root / "CHANGELOG.md").exists():
        _, _, changes = (root / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")
        (folder / "changes.txt").write_text(changes, encoding="utf-8")


def bibtex(citation: dict[str, Any]) -> str:
    """A CITATION.cff as BibTeX: the software, then what it refers to."""
    year = str(citation.get("date-released", citation["references"][0]["year"]))[:4]
    software = {
        "author": _names(citation["authors"]),
        "title": citation["title"],
        "version": citation["version"],
        "year": year,
        "license": citation["license"],
    }
    entries = [_entry("software", "iumad", software)]
    for reference in citation["references"]:
        fields = {
            "author": _names(reference["authors"]),
            "title": " ".join(reference["title"].split()),
            "booktitle": reference["collection-title"],
            "year": reference["year"],
        }
        key = f"{reference['authors'][0]['family-names'].lower()}{reference['year']}"
        entries.append(_entry("inproceedings", key, fields))
    return "\n".join(entries)


def _names(people: Sequence[dict[str, str]]) -> str:
    names = [
        f"{person['family-names']}, {person['given-names']}"
        if "family-names" in person
        else f"{{{person['name']}}}"
        for person in people
    ]
    return " and ".join(names)


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"


def executions(notebooks: Sequence[Path]) -> str:
    """A table in MyST: every notebook, when it was executed, how long that took, from which commit, where."""
    lines = [
        "| notebook | executed (UTC) | seconds | commit | machine |",
        "|---|---|--:|---|---|",
    ]
    for path in sorted(notebooks):
        metadata = nbformat.read(path, as_version=4).metadata
        run, where = metadata.get("papermill", {}), metadata.get("iumad", {})
        when = str(run.get("start_time", UNKNOWN))[:16].replace("T", " ")
        took = f"{run['duration']:.0f}" if "duration" in run else UNKNOWN
        commit = where.get("commit") or UNKNOWN
        machine = str(where.get("machine", UNKNOWN)).replace("|", "/")
        name = f"[](executed/{path.name})"
        lines.append(f"| {name} | {when} | {took} | {commit} | {machine} |")
    return "\n".join(lines) + "\n"


def comparison_page(found: Comparison, first: str, second: str) -> str:
    """Two studies side by side as one html file, named as the reader named them."""
    title = fill("{} and {}", first, second)
    parts: list[Html] = [
        box(comparison_text(found, first, second)),
        _part("Keys that differ", found.keys, "keys"),
        _part("Numbers, in percent and points (second minus first)", found.numbers, "numbers"),
        fold("Trained steps that both share", table(found.shared, csv="shared-steps")),
    ]
    body = fill("{}" * len(parts), *[part.source for part in parts])
    return str(fill(PAGE, title=title, body=body))


def comparison_text(found: Comparison, first: str, second: str) -> list[str]:
    """What a comparison found, in two sentences."""
    steps, same = found.shared["steps second"].sum(), found.shared["shared"].sum()
    told = found.numbers.query("low > 0 or high < 0")
    return [
        f"{len(found.keys)} keys differ between {first} and {second}; they share {same} of {steps} trained steps.",
        f"{len(told)} of {len(found.numbers)} numbers differ by more than their 95 % interval over seeds."
        if len(found.numbers)
        else "There are no numbers of both: run them first.",
    ]


def _part(title: str, frame: pd.DataFrame, name: str) -> Html:
    shown = table(frame, csv=name).source if len(frame) else fill("<p>none</p>")
    return Html(fill("<h2>{}</h2>{}", title, shown))
