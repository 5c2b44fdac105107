"""The book: a failed notebook is noticed, and the pages are whole and work without a network."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook

from iumad.errors import ConfigError
from iumad.machine import usable_cores
from iumad.report.book import (
    BookError,
    build_book,
    execute_notebooks,
    extract_figures,
    failures,
    make_book,
)

MAX_PAGE = 3_000_000  # bytes of html


@pytest.fixture
def small_repository(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a repository of one notebook with the given last cell."""

    def make(source: str) -> Path:
        cells = [
            new_code_cell(
                'profile = None\nseeds = None\nresults = "x"', metadata={"tags": ["parameters"]}
            ),
            new_code_cell(source),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
        folder = tmp_path / "notebooks"
        folder.mkdir()
        nbformat.write(notebook, folder / "01_one.ipynb")
        return tmp_path

    return make


def write_params(folder: Path, text: str) -> Path:
    path = folder / "two.yaml"
    path.write_text(text)
    return path


def test_notebooks_get_the_content_of_the_params_file(small_repository):
    root = small_repository("print(profile, seeds, results)")
    params = write_params(root, "seeds: [3, 4]\n")
    (path,) = execute_notebooks(params, root / "out", root, root / "runs")
    assert failures(path) == []
    output = nbformat.read(path, as_version=4).cells[-1].outputs[0].text
    assert output.split() == ["two", "[3,", "4]", "../runs"]


def test_a_notebook_with_a_study_of_its_own_keeps_it(small_repository):
    root = small_repository("print(profile, seeds, results)")
    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += '\nparams_file = "../params/settings.yaml"'
    nbformat.write(notebook, path)
    (done,) = execute_notebooks(
        write_params(root, "seeds: [3]\n"), root / "out", root, root / "runs"
    )
    output = nbformat.read(done, as_version=4).cells[-1].outputs[0].text
    assert output.split() == ["None", "None", "../runs"]


@pytest.mark.parametrize(
    ("folder", "shown"),
    [("params/other", "../params/other/settings.yaml"), ("params", "../params/settings.yaml")],
)
def test_a_study_beside_the_params_file_is_shown(small_repository, folder, shown):
    root = small_repository("print(params_file)")
    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += '\nparams_file = "../params/settings.yaml"'
    nbformat.write(notebook, path)
    (root / folder).mkdir(parents=True)
    (root / folder / "settings.yaml").write_text("seeds: [1]\n")
    params = write_params(root / folder, "seeds: [3]\n")
    (done,) = execute_notebooks(params, root / "out", root)
    cells = nbformat.read(done, as_version=4).cells
    assert cells[-1].outputs[0].text.strip() == shown
    injected = [c for c in cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == (folder != "params")  # its default is left alone
    assert str(root) not in done.read_text()


def test_executed_notebooks_do_not_name_the_machine(small_repository):
    root = small_repository("1 + 1")
    (path,) = execute_notebooks(write_params(root, "seeds: [3]\n"), root / "out", root)
    assert str(root) not in path.read_text()


def test_figures_of_tables_are_kept_as_svg_and_csv(small_repository):
    root = small_repository(
        "import pandas as pd\nfrom matplotlib import pyplot as plt\nfrom iumad.report.style import in_style\n"
        "@in_style\ndef draw(table):\n    figure, axis = plt.subplots()\n    axis.plot(table['x'])\n"
        "    return figure\ndraw(pd.DataFrame({'x': [1, 2]}))"
    )
    path = root / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].metadata["mystnb"] = {"figure": {"name": "curve", "caption": "A curve."}}
    nbformat.write(notebook, path)
    (path,) = execute_notebooks(write_params(root, "seeds: [3]\n"), root / "out", root)
    extract_figures(path, root / "figures")
    assert (root / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (root / "figures" / "curve.svg").read_text()
    assert (root / "figures" / "curve.csv").read_text() == "x\n1\n2\n"


def test_a_kernel_takes_no_more_threads_than_its_share_of_the_cores(small_repository, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    root = small_repository("import os; print(os.environ['OMP_NUM_THREADS'])")
    (path,) = execute_notebooks(write_params(root, "seeds: [3]\n"), root / "out", root)
    (output,) = nbformat.read(path, as_version=4).cells[-1].outputs
    assert int(output.text) == usable_cores()  # one notebook has them all


def test_a_failing_cell_stops_the_run_and_is_remembered(small_repository):
    root = small_repository("1 / 0")
    with pytest.raises(BookError, match=r"01_one\.ipynb: ZeroDivisionError"):
        execute_notebooks(write_params(root, "seeds: [3]\n"), root / "out", root)
    executed = root / "out" / "executed" / "01_one.ipynb"
    assert "ZeroDivisionError" in " ".join(failures(executed))
    with pytest.raises(BookError, match="ZeroDivisionError"):
        build_book([executed], root / "out", root)


def test_a_notebook_that_was_never_executed_is_not_published(small_repository):
    root = small_repository("1 + 1")
    assert failures(root / "notebooks" / "01_one.ipynb") == ["it was never executed"]


def test_a_misspelt_key_stops_before_any_notebook(small_repository):
    root = small_repository("1 + 1")
    with pytest.raises(ConfigError, match="did you mean 'seeds'"):
        execute_notebooks(write_params(root, "seedz: [3]\n"), root / "out", root)
    assert not list(root.glob("out/executed/*"))


def test_outside_the_repository_there_is_a_clear_error(tmp_path):
    with pytest.raises(BookError, match="repository"):
        execute_notebooks(write_params(tmp_path, "seeds: [3]\n"), tmp_path / "out", tmp_path)
    with pytest.raises(BookError, match="no executed notebooks"):
        make_book(None, tmp_path / "out", tmp_path)


def test_published_notebooks_succeeded_and_are_current(repository):
    published = sorted((repository / "book" / "executed").glob("*.ipynb"))
    if not published:
        pytest.skip("no notebooks are published in book/executed yet")
    notebooks = sorted((repository / "notebooks").glob("*.ipynb"))
    assert [path.name for path in published] == [path.name for path in notebooks]
    for path, source in zip(published, notebooks, strict=True):
        assert failures(path) == []
        ran = [
            c for c in code_cells(path) if "injected-parameters" not in c.metadata.get("tags", [])
        ]
        assert [cell.source for cell in ran] == [cell.source for cell in code_cells(source)]


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def pages(built_book: Path) -> list[Path]:
    generated = {"genindex.html", "search.html", "py-modindex.html", "index.html"}
    found = [p for p in built_book.rglob("*.html") if "_static" not in p.parts]
    return sorted(p for p in found if p.name not in generated)


@pytest.mark.slow
def test_every_entry_of_the_toc_is_a_page(built_book, repository):
    toc = yaml.safe_load((repository / "book" / "_toc.yml").read_text())
    names = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
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
def test_a_warning_fails_the_build(built_book, repository, tmp_path):
    root = tmp_path / "repository"
    (root / "book" / "_vendor").mkdir(parents=True)
    shutil.copytree(repository / "book" / "_theme", root / "book" / "_theme")
    for name in ("logo.svg", "favicon.svg", "references.bib"):
        shutil.copy(repository / "book" / name, root / "book")
    shutil.copy(repository / "_config.yml", root)
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (root / "book" / "intro.md").write_text("# Title\n\n[](nowhere.md)\n")
    executed = sorted((built_book.parent / "executed").glob("*.ipynb"))
    with pytest.raises(BookError, match="nowhere"):
        build_book(executed, tmp_path / "out", root)
