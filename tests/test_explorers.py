"""Explorers: their data by hand, and what they show, driven in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from iumad.report import explorers
from iumad.study.load import load_rows
from iumad.study.measured import load_measured
from iumad.study.results import ROW_SCHEMA

STATIC = ("samples", "maps", "scores", "forgetting", "perturbation")


def decoded(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))))


def rows_of(values: dict[tuple[str, int, int], float]) -> pd.DataFrame:
    """Image AUROC by category, step and seed of one method."""
    keys = pd.DataFrame(list(values), columns=["category", "step", "seed"])
    constant = {
        "profile": "p",
        "dataset": "d",
        "method": "iuf",
        "modality": "rgb",
        "setting": "1-1",
    }
    table = keys.assign(
        value=list(values.values()), metric="i_auroc", n_good=1, n_defect=1, **constant
    )
    return table.assign(run_id=[f"r{s}" for s in table["seed"]])[list(ROW_SCHEMA.columns)]


def test_curves_are_means_over_seeds_in_percent():
    rows = rows_of({("a", 0, 0): 0.8, ("a", 1, 0): 0.6, ("b", 1, 0): 0.9,
                    ("a", 0, 1): 0.9, ("a", 1, 1): 0.8, ("b", 1, 1): 0.7})  # fmt: skip
    data = explorers.forgetting_data(rows)
    (group,) = data["groups"]
    (method,) = group["methods"]
    assert group["learnt"] == [1, 2]
    assert group["start"] == [0, 0]
    assert method["values"]["i_auroc"] == [[85.0, 70.0], [None, 80.0]]
    assert method["forgetting"]["i_auroc"] == pytest.approx(15)  # mean of 20 and 10
    assert explorers.forgetting_data(rows.head(0)) is None


def test_embedded_data_cannot_end_their_script():
    html = explorers.explorer("samples", {"categories": ["</script><b>"]}).source
    embedded = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html)[1]
    assert json.loads(embedded) == {"categories": ["</script><b>"]}


def test_without_measurements_the_page_says_so(finished):
    assert explorers.maps_data(finished.study, pd.DataFrame()) is None
    assert explorers.perturbation_data(finished.study, pd.DataFrame()) is None
    assert "nothing has been measured" in explorers.explorer("maps", None).source


@pytest.fixture(scope="module")
def data(measured) -> dict:
    """Data of all explorers of the finished study."""
    study, results = measured
    return {
        "samples": explorers.samples_data(study.runs()[0]),
        "maps": explorers.maps_data(study, load_measured(study, "samples", results)),
        "scores": explorers.scores_data({"sweets": load_measured(study, "samples", results)}),
        "forgetting": explorers.forgetting_data(load_rows(study, results)),
        "perturbation": explorers.perturbation_data(
            study, load_measured(study, "perturbed", results)
        ),
    }


def test_samples_begin_with_a_good_one(data):
    for category in data["samples"]["categories"]:
        titles = [sample["title"] for sample in category["samples"]]
        assert titles[0] == "good"
        assert len(set(titles)) == len(titles) > 1
        assert not decoded(category["samples"][0]["mask"]).any()
        assert decoded(category["samples"][1]["mask"]).any()


def test_maps_open_on_a_defect_of_ib_iumad(data):
    start = data["maps"]["start"]
    assert data["maps"]["runs"][start["run"]]["method"] == "ib-iumad"
    category = data["maps"]["categories"][start["category"]]
    assert category["samples"][start["sample"]]["label"] == 1


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Iterator:
    """All explorers on one page in headless chromium, and what went wrong there."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    body = "".join(explorers.explorer(kind, data[kind]).source for kind in STATIC)
    path: Path = tmp_path_factory.mktemp("explorers") / "page.html"
    path.write_text(f"<!doctype html><html lang=en><title>t</title><main>{body}</main>", "utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.trouble = []
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("console", lambda m: page.trouble.append(m.text) if m.type == "error" else None)
        page.goto(path.as_uri())
        for kind in STATIC:
            page.wait_for_selector(f"#iumad-{kind}[data-ready]")
        yield page
        browser.close()


def look(page, kind: str) -> tuple:
    """What an explorer shows: pixels of its canvases, its curves and its text."""
    return tuple(
        page.evaluate(
            """kind => { const root = document.getElementById("iumad-" + kind);
            return [[...root.querySelectorAll("canvas")].map((c) => c.toDataURL()).join(),
                    [...root.querySelectorAll("svg")].map((s) => s.outerHTML).join(),
                    root.querySelector(".values").textContent]; }""",
            kind,
        )
    )


def after(page, kind: str, act) -> tuple[tuple, tuple]:
    """Look before and after an action that redraws the explorer."""
    ready = f"document.getElementById('iumad-{kind}').dataset.ready"
    before, stamp = look(page, kind), page.evaluate(ready)
    act(page.locator(f"#iumad-{kind}"))
    page.wait_for_function(f"{ready} !== {stamp!r}")
    return before, look(page, kind)


@pytest.mark.browser
def test_maps_are_driven_by_keyboard(page):
    before, now = after(
        page, "maps", lambda root: root.get_by_role("slider", name="Threshold").press("ArrowRight")
    )
    assert before[0] != now[0]
    assert before[2] != now[2]
    before, now = after(
        page, "maps", lambda root: root.get_by_role("slider", name="Opacity").press("Home")
    )
    assert before[0] != now[0]
    assert before[2] == now[2]  # opacity changes no number
    before, now = after(
        page,
        "maps",
        lambda root: root.get_by_role("combobox", name="Method").select_option(index=0),
    )
    assert before[1] != now[1]  # another histogram
    before, now = after(page, "maps", lambda root: root.get_by_role("checkbox").press("Space"))
    assert before[0] != now[0]


@pytest.mark.browser
def test_maps_tell_the_score_of_the_sample(page, data):
    after(
        page,
        "maps",
        lambda root: root.get_by_role("combobox", name="Category").select_option(index=2),
    )
    _, now = after(
        page,
        "maps",
        lambda root: root.get_by_role("combobox", name="Sample").select_option(index=0),
    )
    method = page.locator("#iumad-maps").get_by_role("combobox", name="Method").input_value()
    score = data["maps"]["runs"][int(method)]["categories"][2]["samples"][0]["score"]
    told = float(re.search(r"image score ([\d.e+-]+)\.", now[2])[1])
    assert told == pytest.approx(score, rel=5e-3)  # three digits


@pytest.mark.browser
def test_scores_count_false_alarms_and_misses(page, data):
    _, now = after(
        page,
        "scores",
        lambda root: root.get_by_role("slider", name="False alarms").press("Home"),
    )
    (group,) = data["scores"]["groups"]
    for line, place in zip(now[2].split("missed.")[:2], group["start"], strict=True):
        good, *defects = group["methods"][place]["categories"][0]["kinds"]
        assert good["name"] == "good"
        scores = [score for kind in defects for score in kind["scores"]]
        missed = sum(score <= max(good["scores"]) for score in scores)
        assert f"0 false alarms, {missed} of {len(scores)} " in line


@pytest.mark.browser
def test_forgetting_shows_values(page, data):
    before, now = after(
        page,
        "forgetting",
        lambda root: root.get_by_role("combobox", name="Metric").select_option(index=2),
    )
    assert before[1] != now[1]
    page.locator("#iumad-forgetting summary").click()
    cells = page.locator("#iumad-forgetting tbody tr").first.locator("td").all_inner_texts()
    group = data["forgetting"]["groups"][0]
    ours, beside = (group["methods"][place] for place in group["start"])
    assert ours["name"] == "ib-iumad"
    values = ours["values"]["aupro"][0]
    assert cells == [f"{value:.1f}" for value in values]
    page.locator("#iumad-forgetting circle").last.hover()  # it covers all others of its place
    last = beside["values"]["aupro"][-1][-1]
    assert f": {last:.1f}" in page.locator("#iumad-forgetting .values").inner_text()


@pytest.mark.browser
def test_perturbation_changes_picture_and_value(page, data):
    before, now = after(
        page, "perturbation", lambda root: root.get_by_role("slider", name="Strength").press("End")
    )
    assert before[0] != now[0]
    run = data["perturbation"]["kinds"][0]["runs"][0]
    assert f"{run['name']} {run['values']['i_auroc'][-1]:.1f}" in now[2]
    before, now = after(
        page,
        "perturbation",
        lambda root: root.get_by_role("combobox", name="Perturbation").select_option(index=1),
    )
    assert before[0] != now[0]


@pytest.mark.browser
def test_data_follow_category_and_defect(page):
    for label in ("Category", "Defect"):
        before, now = after(
            page,
            "samples",
            lambda root, name=label: root.get_by_role("combobox", name=name).select_option(
                index=0 if name == "Defect" else 1
            ),
        )
        assert before[0] != now[0]
        assert before[2] != now[2]


@pytest.mark.browser
def test_explorers_have_alternatives_and_fit(page):
    assert page.trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    names = page.evaluate(
        "[...document.querySelectorAll('canvas, svg')].map((e) => e.getAttribute('aria-label'))"
    )
    assert len(names) >= 11
    assert min(map(len, names)) > 10
    loose = page.evaluate(
        "[...document.querySelectorAll('select, input')].filter((e) => !e.labels.length).length"
    )
    assert loose == 0
