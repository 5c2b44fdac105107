"""Pages made from files: by hand."""

from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_notebook

from iumad.report.book import bibtex, executions, write_pages

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_is_bibtex_of_the_software_and_the_paper():
    text = bibtex(yaml.safe_load((ROOT / "CITATION.cff").read_text()))
    assert text.startswith("@software{iumad,\n  author = {{The iumad contributors}},")
    assert "@inproceedings{long2026," in text
    assert "author = {Long, Kaifang and Ma, Lianbo and" in text
    assert text.count("{") == text.count("}")


def test_executions_say_when_how_long_from_what_and_where(tmp_path):
    told = {"start_time": "2026-11-28T09:56:55.19+00:00", "duration": 13.1}
    record = {"papermill": told, "iumad": {"commit": "abc1234", "machine": "one | two, 2 cores"}}
    nbformat.write(new_notebook(metadata=record), tmp_path / "01_a.ipynb")
    nbformat.write(new_notebook(), tmp_path / "02_b.ipynb")
    lines = executions([tmp_path / "02_b.ipynb", tmp_path / "01_a.ipynb"]).splitlines()
    first = "| [](executed/01_a.ipynb) | 2026-11-28 09:56 | 13 | abc1234 | one / two, 2 cores |"
    assert lines[2:] == [first, "| [](executed/02_b.ipynb) | - | - | - | - |"]


def test_every_included_part_is_written(tmp_path):
    write_pages(ROOT, [], tmp_path / "generated")
    names = {path.name for path in (tmp_path / "generated").iterdir()}
    pages = "".join(
        (ROOT / "book" / f"{n}.md").read_text() for n in ("cite", "executions", "changes")
    )
    assert names == {"citation.bib", "executions.txt", "changes.txt"}
    assert all(f"generated/{name}" in pages for name in names)
    assert "# Changelog" not in (tmp_path / "generated" / "changes.txt").read_text()
