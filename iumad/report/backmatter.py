"""Pages of the book that are made from files: how to cite, when the notebooks were executed, what changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

UNKNOWN = "-"


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
        name = f"[](../executed/{path.name})"
        lines.append(f"| {name} | {when} | {took} | {commit} | {machine} |")
    return "\n".join(lines) + "\n"
