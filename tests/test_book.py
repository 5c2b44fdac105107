"""The book: a failed notebook is noticed, and the pages are whole and work without a network."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from books import bare_book
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook

from iumad.errors import ConfigError
from iumad.report.book import (
    BookError,
    build_book,
    execute_notebook,
    execute_notebooks,
    extract_figures,
    failures,
    make_book,
    notebook_parameters,
    republish,
)

MAX_PAGE = 3_000_000  # bytes of html
FIGURE = """
import pandas as pd
from matplotlib import pyplot as plt
from iumad.report.style import in_style, keep_table

@in_style
def draw(table):
    figure, axis = plt.subplots()
    axis.plot(table["x"])
    return keep_table(figure, table)

draw(pd.DataFrame({"x": [1, 2]}))
"""


@pytest.fixture
def small_repository(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a repository of one notebook with the given last cell and own params file."""

    def make(source: str, params: str = "mini") -> Path:
        first = f'params_file = "../params/{params}.yaml"\nresults = "../results"\nrun = False'
        cells = [new_code_cell(first, metadata={"tags": ["parameters"]}), new_code_cell(source)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        for name in ("notebooks", "params/other"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("params/settings.yaml", "params/two.yaml", "params/other/settings.yaml"):
            (tmp_path / name).write_text("seeds: [3]\n")
        nbformat.write(notebook, tmp_path / "notebooks" / "01_one.ipynb")
        return tmp_path

    return make


def last_text(path: Path) -> str:
    """What the last cell of an executed notebook printed."""
    return nbformat.read(path, as_version=4).cells[-1].outputs[0].text.strip()


@pytest.mark.parametrize(
    ("own", "given", "shown"),
    [
        ("mini", "two", "../params/two.yaml"),  # a page of the main job shows any params file
        ("settings", "two", "../params/settings.yaml"),  # another keeps its study,
        ("settings", "other/two", "../params/other/settings.yaml"),  # or takes the one beside
    ],
)
def test_a_notebook_is_told_what_to_show(small_repository, own, given, shown):
    root = small_repository("1", own)
    told = notebook_parameters(
        root / "notebooks" / "01_one.ipynb", root / "params" / f"{given}.yaml"
    )
    assert told.get("params_file", f"../params/{own}.yaml") == shown


def test_an_executed_notebook_shows_what_it_was_told_and_keeps_its_figure(small_repository):
    root = small_repository("print(params_file, results, run)\n" + FIGURE)
    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].metadata["mystnb"] = {"figure": {"name": "curve", "caption": "A curve."}}
    nbformat.write(notebook, path)
    params = root / "params" / "two.yaml"
    (path,) = execute_notebooks(params, root / "out", root, root / "runs")
    assert failures(path) == []
    assert last_text(path) == "../params/two.yaml ../runs False"
    assert str(root) not in path.read_text()
    names = ["curve.png", "curve.svg", "curve.csv"]
    assert extract_figures(path, root / "figures") == {"curve": names}
    assert (root / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (root / "figures" / "curve.svg").read_text()
    assert (root / "figures" / "curve.csv").read_text() == "x\n1\n2\n"


def test_published_pages_see_the_published_tables_alone(small_repository, monkeypatch):
    monkeypatch.setenv("IUMAD_DATA", "photographs")
    root = small_repository(
        "import os\nfrom pathlib import Path\nassert 'IUMAD_DATA' not in os.environ\n"
        "print([sorted(p.name for p in Path(d).iterdir()) for d in ('../results', '../params')])"
    )
    for name in ("steps/0123", "mini", "efficiency"):
        (root / "results" / name).mkdir(parents=True)
    (path,) = republish(root / "executed", root)
    assert last_text(path) == "[['mini'], ['other', 'settings.yaml', 'two.yaml']]"
    assert "injected-parameters" not in path.read_text()
    assert os.environ["IUMAD_DATA"] == "photographs"


def test_a_page_that_needs_what_is_absent_is_kept_as_published(small_repository, capsys):
    root = small_repository("1 / 0")
    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["iumad"] = {"needs": "absent_package"}
    nbformat.write(notebook, path)
    (root / "results").mkdir()
    (root / "book" / "executed").mkdir(parents=True)
    (root / "book" / "executed" / path.name).write_text("published")
    (kept,) = republish(root / "out", root)
    assert kept.read_text() == "published"
    assert "01_one: kept as published, executing it needs absent_package" in capsys.readouterr().out


def test_a_failing_cell_stops_the_run_and_is_remembered(small_repository):
    root = small_repository("1 / 0")
    with pytest.raises(BookError, match=r"01_one\.ipynb: ZeroDivisionError"):
        execute_notebooks(root / "params" / "two.yaml", root / "out", root)
    executed = root / "out" / "01_one.ipynb"
    assert "ZeroDivisionError" in " ".join(failures(executed))
    with pytest.raises(BookError, match="ZeroDivisionError"):
        build_book([executed], root / "out", root)
    assert failures(root / "notebooks" / "01_one.ipynb") == ["it was never executed"]


def test_a_cell_that_never_ends_is_given_up_and_its_page_named(small_repository, monkeypatch):
    monkeypatch.setattr("iumad.report.book.CELL_SECONDS", 3)
    root = small_repository("import time; time.sleep(100)")
    with pytest.raises(BookError, match=r"01_one\.ipynb: a cell was not done after 3 s"):
        execute_notebook(
            root / "notebooks" / "01_one.ipynb", root / "params" / "two.yaml", root / "out"
        )


def test_a_misspelt_key_stops_before_any_notebook(small_repository):
    root = small_repository("1 + 1")
    (root / "params" / "two.yaml").write_text("seedz: [3]\n")
    with pytest.raises(ConfigError, match="did you mean 'seeds'"):
        execute_notebooks(root / "params" / "two.yaml", root / "out", root)
    assert not list(root.glob("out/*"))


def test_outside_the_repository_there_is_a_clear_error(small_repository):
    root = small_repository("1 + 1")
    with pytest.raises(BookError, match="repository"):
        execute_notebooks(root / "params" / "two.yaml", root / "out", root / "params")
    with pytest.raises(BookError, match="no executed notebooks"):
        make_book(None, root / "out", root)


def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def pages(built_book: Path) -> list[Path]:
    generated = {"genindex.html", "search.html", "py-modindex.html", "index.html"}
    found = [p for p in built_book.rglob("*.html") if "_static" not in p.parts]
    return sorted(p for p in found if p.name not in generated)


@pytest.mark.slow
def test_every_entry_of_the_toc_is_a_page(built_book, repository):
    toc = yaml.safe_load((repository / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    inner = [section for chapter in chapters for section in chapter.get("sections", [])]
    names = [toc["root"], *(entry["file"] for entry in (*chapters, *inner))]
    found = {str(page.relative_to(built_book).with_suffix("")) for page in pages(built_book)}
    assert found == set(names)


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(built_book):
    for page in pages(built_book):
        html = soup(page)
        sources = [
            tag["src"] for tag in html.select("script[src], img[src], iframe[src], source[src]")
        ]
        sources += [tag["href"] for tag in html.select("link[href]")]
        outside = [
            s for s in sources if urlsplit(s).scheme not in {"", "data"} or s.startswith("//")
        ]
        assert outside == [], page.name


@pytest.mark.slow
def test_no_page_shows_an_error(built_book):
    for page in pages(built_book):
        html = soup(page)
        assert not html.select(".output.traceback, .cell_output .error, .system-message"), page.name
        assert not re.search(r"Traceback \(most recent call last\)", html.get_text()), page.name


@pytest.mark.slow
def test_links_inside_the_book_lead_somewhere(built_book):
    ids: dict[Path, set[str]] = {}
    for page in pages(built_book):
        for tag in soup(page).select("a[href]"):
            link = urlsplit(tag["href"])
            if link.scheme or not (link.path or link.fragment):
                continue
            target = (page.parent / unquote(link.path)).resolve() if link.path else page
            assert target.is_file(), f"{page.name}: {tag['href']}"
            if link.fragment and target.suffix == ".html":
                if target not in ids:
                    ids[target] = {each["id"] for each in soup(target).select("[id]")}
                assert unquote(link.fragment) in ids[target], f"{page.name}: {tag['href']}"


@pytest.mark.slow
def test_pictures_exist_and_say_what_they_show(built_book):
    for page in pages(built_book):
        for tag in soup(page).select("article img"):
            assert (page.parent / unquote(tag["src"])).is_file(), page.name
            assert len(tag.get("alt", "")) > 10, f"{page.name}: {tag['src']}"
            assert not tag["alt"].endswith(".png"), f"{page.name}: {tag['src']}"


@pytest.mark.slow
def test_pages_are_small(built_book):
    assert {
        p.name: p.stat().st_size for p in pages(built_book) if p.stat().st_size > MAX_PAGE
    } == {}


@pytest.mark.slow
def test_a_warning_fails_the_build(repository, tmp_path):
    root = bare_book(repository, tmp_path / "repository", "# Title\n\n[](nowhere.md)\n")
    with pytest.raises(BookError, match="nowhere"):
        build_book(
            sorted((repository / "book" / "executed").glob("04*.ipynb")), tmp_path / "out", root
        )
