"""Every page in a real browser: no request leaves the page, no script fails, nothing is wider than the window."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
import pytest
from books import bare_book
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from iumad.report.book import build_book

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTHS = (1280, 400)  # a laptop, a telephone
LOCAL = ("file:", "data:", "blob:")
PATIENCE = 300_000  # milliseconds: shared machines are slow


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless chromium of the system."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # the sandbox of chromium does not start for root, which containers run as
        instance = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield instance
        instance.close()


def new_page(browser, **options):
    """A page that waits long enough."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    return page


def pages(built_book: Path) -> list[Path]:
    return sorted(p for p in built_book.rglob("*.html") if "_static" not in p.parts)


@pytest.fixture(scope="module")
def screenshots(repository) -> Path:
    """Folder for pictures of all pages, to be looked at."""
    folder = repository / "build" / "screenshots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_work_alone(browser, built_book, screenshots, width):
    trouble = []
    with browser.new_context(viewport={"width": width, "height": 900}) as context:
        context.set_default_timeout(PATIENCE)
        for path in pages(built_book):
            name = str(path.relative_to(built_book).with_suffix("")).replace("/", "_")
            page = context.new_page()
            page.on(
                "request",
                lambda r, n=name: (
                    trouble.append((n, r.url)) if not r.url.startswith(LOCAL) else None
                ),
            )
            page.on(
                "console",
                lambda m, n=name: trouble.append((n, m.text)) if m.type == "error" else None,
            )
            page.on("pageerror", lambda e, n=name: trouble.append((n, str(e))))
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_timeout(300)  # scripts that start after loading
            page.screenshot(path=screenshots / f"{name}_{width}.png", full_page=True)
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                trouble.append((name, f"{wide} pixels wide in a window of {width}"))
            page.close()
    assert trouble == []


HIGHEST = 6000  # pixels at the width of a laptop
MARGIN = 48  # pixels right of what a page shows, at most
SMALLEST = 10  # pixels of a letter on a telephone
MEASURE = """() => {
    const shown = (node) => node.offsetParent && !node.closest("details:not([open])");
    const tables = [...document.querySelectorAll("article table")].filter(shown);
    const texts = [...document.querySelectorAll("article :is(p, td, th, li, figcaption, summary)")].filter(shown);
    return {
        height: document.documentElement.scrollHeight,
        cut: tables.filter((t) => t.scrollWidth > t.clientWidth + 1).map((t) => t.innerText.slice(0, 60)),
        margin: innerWidth - document.querySelector("article").getBoundingClientRect().right,
        letters: Math.min(...texts.map((t) => parseFloat(getComputedStyle(t).fontSize))),
    };
}"""


def measured(browser, built_book: Path, width: int) -> dict[str, dict]:
    """What `MEASURE` finds on each page in a window of some width."""
    page, found = new_page(browser, viewport={"width": width, "height": 900}), {}
    for path in pages(built_book):
        if "<article" in path.read_text(encoding="utf-8") and "index" not in path.stem:
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_timeout(300)
            found[path.stem] = page.evaluate(MEASURE)
    page.close()
    assert len(found) > 20
    return found


def test_pages_fit_a_laptop(browser, built_book):
    """No page is endless, no table that is not folded away is cut, and the right margin is used."""
    found = measured(browser, built_book, WIDTHS[0])
    trouble = {
        name: page
        for name, page in found.items()
        if page["cut"] or page["height"] > HIGHEST or page["margin"] > MARGIN
    }
    assert trouble == {}


def test_letters_are_readable_on_a_telephone(browser, built_book):
    letters = {name: p["letters"] for name, p in measured(browser, built_book, WIDTHS[1]).items()}
    assert {name: size for name, size in letters.items() if size < SMALLEST} == {}


def test_long_tables_are_sorted_and_searched(browser, repository):
    lines = [f"<tr><td>n{i * 7 % 15}</td><td>{i * 7 % 15}.5 ± 0.1</td></tr>" for i in range(14)]
    body = "".join([*lines, "<tr><td>&lt;b&gt;</td><td>-</td></tr>"])
    head = "<thead><tr><th>name</th><th>value</th></tr></thead>"
    script = (repository / "book" / "_theme" / "book.js").read_text()
    table = f"<table>{head}<tbody>{body}</tbody></table>"
    page = new_page(browser)
    page.set_content(
        f'<div class="bd-article"><div class="iumad">{table}</div></div><script>{script}</script>'
    )
    shown = page.locator("tbody tr:visible td:first-child")
    page.get_by_role("button", name="value").click()
    assert shown.all_inner_texts() == [*(f"n{i}" for i in range(15) if i != 8), "<b>"]
    page.get_by_role("button", name="value").click()
    assert shown.all_inner_texts()[0] == "n14"
    assert shown.all_inner_texts()[-1] == "<b>"  # what has no number comes last
    page.get_by_role("searchbox").fill("n1")
    assert set(shown.all_inner_texts()) == {"n1", *(f"n{i}" for i in range(10, 15))}
    page.close()


def test_formulas_are_typeset(browser, built_book):
    page = new_page(browser)
    page.goto((built_book / "method.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    assert page.locator("mjx-container").count() > 10
    assert page.locator("mjx-merror").count() == 0
    page.close()


def test_dark_mode_darkens(browser, built_book):
    page = new_page(browser, color_scheme="dark")
    page.goto((built_book / "intro.html").as_uri())
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in ground.strip("rgba()").split(",")[:3]]
    assert max(channels) < 60
    page.close()


SERIOUS = ("serious", "critical")
DARK_PAGES = ("intro", "method", "departures", "30_explore", "23_evaluation")


def test_pages_are_accessible(browser, built_book):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    parts = {"include": [["article"]], "exclude": [["mjx-container"]]}  # MathJax speaks for itself
    trouble = {}
    for scheme in ("light", "dark"):
        page = new_page(browser, color_scheme=scheme)
        for path in pages(built_book):
            if scheme == "dark" and path.stem not in DARK_PAGES:
                continue  # the colours that could differ are all on these
            if "<article" not in path.read_text(encoding="utf-8"):
                continue  # the redirection to the first page, and the theme's search
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_timeout(300)
            found = axe.run(page, context=parts, options={"resultTypes": ["violations"]})
            for violation in found.response["violations"]:
                if violation["impact"] in SERIOUS:
                    nodes = [node["html"][:150] for node in violation["nodes"]]
                    trouble.setdefault(violation["id"], []).append((path.name, nodes[0]))
        page.close()
    assert trouble == {}


def test_print_view_shows_the_article_alone(browser, built_book):
    page = new_page(browser)
    page.goto((built_book / "intro.html").as_uri())
    page.emulate_media(media="print")
    assert page.locator(
        "#jb-print-docs-body h1"
    ).is_visible()  # the theme prints a heading of its own
    assert page.locator("article h2").first.is_visible()
    assert not page.locator(".bd-sidebar-primary").is_visible()
    assert not page.locator(".bd-sidebar-secondary").is_visible()
    page.close()


def test_explorers_of_the_book_are_alive(browser, built_book):
    page = new_page(browser)
    page.goto((built_book / "executed" / "30_explore.html").as_uri())
    for kind in ("samples", "maps", "scores", "forgetting", "perturbation"):
        page.wait_for_selector(f"#iumad-{kind}[data-ready]")
    threshold = page.locator("#iumad-maps").get_by_role("slider", name="Threshold")
    before = page.locator("#iumad-maps .values").inner_text()
    threshold.press("Home")
    page.wait_for_function(
        "text => document.querySelector('#iumad-maps .values').textContent !== text", arg=before
    )
    page.close()


def test_search_finds_a_word(browser, built_book):
    page = new_page(browser)
    page.goto((built_book / "search.html").as_uri() + "?q=bottleneck")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results li a").count() >= 2
    page.close()


HOSTILE = """
import pandas as pd
from markupsafe import Markup
from iumad.config.schema import StudyConfig
from iumad.report import explorers, figures, style, tables, text
from iumad.study.results import ROW_SCHEMA

names = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", '"><svg onload=alert(3)>',
         "[a](javascript:alert(4))", "$x$", r"\\(y\\)", "{{ 7 * 7 }}", "`code`", "_a_", "<b>bold</b>"]
rows = pd.DataFrame([
    (method + str(seed), method, method, method, "rgb", "1-1", seed, step, category, metric, 0.5, 1, 1)
    for method in ("iuf", "ib-iumad", *names) for seed in (0, 1) for step in (0, 1)
    for category in names[: 5 + 5 * step] for metric in ("i_auroc", "p_auroc", "aupro")
], columns=list(ROW_SCHEMA.columns)).assign(dataset=names[0], profile=names[1])
keys = ["method", "modality", "setting", "metric", "n", "estimate", "p_holm"]
compared = pd.DataFrame([(name, "rgb", "1-1", "i_auroc", 2, 1.0, 1.0) for name in names], columns=keys)
"""
SHOWN = [
    "style.table(tables.category_table(StudyConfig(), rows, 'i_auroc'), csv=names[2])",
    "style.fold(names[0], *names, style.box(text.place_among(rows, compared, names), names[2]))",
    "style.table(pd.DataFrame({name: names for name in names}))",
    "explorers.explorer('forgetting', explorers.forgetting_data(rows))",
    "figures.category_heatmap(rows.query('method == \"iuf\"').assign(method=names[0], dataset='d'))",
]


def test_nothing_from_data_runs_in_a_page(browser, repository, tmp_path):
    """Names that are html, scripts, links, formulas or templates stay the names that they are."""
    cells = [new_markdown_cell("# Names"), *map(new_code_cell, (HOSTILE, *SHOWN))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = tmp_path / "hostile.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), notebook)
    papermill.execute_notebook(notebook, notebook, progress_bar=False)
    root = bare_book(repository, tmp_path / "root", "# A title\n", "executed/hostile")
    (root / "book" / "figures").mkdir()
    html = build_book([notebook], tmp_path / "out", root).parent / "executed" / "hostile.html"

    page, dialogs = new_page(browser), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(html.as_uri(), wait_until="load")
    page.wait_for_selector("#iumad-forgetting[data-ready]")
    page.locator("#iumad-forgetting").get_by_role("combobox", name="Method").select_option(index=3)
    page.wait_for_timeout(500)  # MathJax starts after loading
    assert dialogs == []
    shown = page.locator("article .iumad")
    assert shown.locator("img, mjx-container, b").count() == 0
    scripts = shown.locator("script:not([type='application/json'])").evaluate_all(
        "all => all.map((s) => s.text)"
    )
    assert not [script for script in scripts if "alert(" in script]
    text = shown.first.inner_text()
    for name in (
        "<script>alert(1)</script>",
        "$x$",
        "\\(y\\)",
        "{{ 7 * 7 }}",
        "[a](javascript:alert(4))",
    ):
        assert name in text
    page.close()
