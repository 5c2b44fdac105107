"""A book of one prose page and what notebooks it is given, to build in tests; and what an executed page says."""

import shutil
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup


def bare_book(repository: Path, root: Path, intro: str, *chapters: str) -> Path:
    """Write the sources of a small book with the repository's theme and settings; return its root."""
    (root / "book").mkdir(parents=True)
    for name in ("_theme", "_vendor"):
        shutil.copytree(repository / "book" / name, root / "book" / name)
    for name in ("logo.svg", "favicon.svg", "references.bib"):
        shutil.copy(repository / "book" / name, root / "book")
    shutil.copy(repository / "_config.yml", root)
    files = "".join(f"\n  - file: {name}" for name in chapters)
    toc = "format: jb-book\nroot: intro\n" + (f"chapters:{files}\n" if files else "")
    (root / "book" / "_toc.yml").write_text(toc)
    (root / "book" / "intro.md").write_text(intro)
    return root


def shown(path: Path) -> list[str]:
    """Everything that the outputs of an executed notebook say, in order; pictures are not looked at."""
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                texts.append(BeautifulSoup(data["text/html"], "html.parser").get_text(" "))
            texts += [data["text/csv"]] if "text/csv" in data else []
            texts += [output["text"]] if output.get("name") == "stdout" else []
    return texts
