"""Explorers: their data by hand, live ones driven by setting values, static ones driven in a browser."""

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
from bs4 import BeautifulSoup
from PIL import Image

from iumad.data import open_dataset
from iumad.report import explorers, widgets
from iumad.report.widgets import OUTLINE, WHITE, overlay
from iumad.study import samples as explorer_data
from iumad.study.results import ROW_SCHEMA

STATIC = ("samples", "maps", "forgetting", "perturbation")


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
    assert method["values"]["i_auroc"] == [[85.0, 70.0], [None, 80.0]]
    assert method["forgetting"]["i_auroc"] == pytest.approx(15)  # mean of 20 and 10
    assert explorers.forgetting_data(rows.head(0)) is None


def test_quantised_maps_keep_their_ends():
    levels = explorers.quantised(np.array([[0.0, 1.0, 2.0, 3.0]]), low=1.0, high=2.0)
    assert levels.tolist() == [[0, 0, 255, 255]]
    assert (decoded(explorers.png(levels.repeat(4, axis=0), side=64)) == levels).all()


def test_colours_have_three_bytes_each():
    assert re.fullmatch("[0-9a-f]{1536}", explorers.map_colours())


def test_embedded_data_cannot_end_their_script():
    html = explorers.explorer("samples", {"categories": ["</script><b>"]}).source
    embedded = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html)[1]
    assert json.loads(embedded) == {"categories": ["</script><b>"]}


def test_without_a_run_the_page_says_so(finished, tmp_path):
    assert explorer_data.maps_data(finished.study, tmp_path) is None
    assert explorer_data.perturbation_data(finished.study, tmp_path) is None
    assert "no finished run" in explorers.explorer("maps", None).source
    assert "no finished run" in widgets.explore_maps(tmp_path).value


def test_samples_begin_with_a_good_one(finished):
    data = explorers.samples_data(open_dataset(finished.study.data), finished.study.data)
    for category in data["categories"]:
        titles = [sample["title"] for sample in category["samples"]]
        assert titles[0] == "good"
        assert len(set(titles)) == len(titles) > 1
        assert not decoded(category["samples"][0]["mask"]).any()
        assert decoded(category["samples"][1]["mask"]).any()


def test_overlay_by_hand():
    rgb = np.full((5, 5, 3), 90, dtype=np.uint8)
    level, truth = np.zeros((5, 5)), np.zeros((5, 5), dtype=bool)
    level[1:4, 1:4], truth[4, 4] = 1.0, True
    drawn = overlay(rgb, level, threshold=0.5, opacity=0.0, truth=truth)
    assert (drawn[1, 1:4] == WHITE).all()  # the border of the square
    assert (drawn[2, 2] == 90).all()  # its middle: the image, as the map is transparent
    assert (drawn[4, 4] == OUTLINE).all()
    assert (
        overlay(rgb, level, 2.0, 1.0, truth)[0, 0] < 10
    ).all()  # the low end of the colours is nearly black


@pytest.fixture(scope="module")
def data(finished) -> dict:
    """Data of all static explorers of the finished study."""
    return {
        "samples": explorers.samples_data(open_dataset(finished.study.data), finished.study.data),
        "maps": explorer_data.maps_data(finished.study, finished.results),
        "forgetting": explorers.forgetting_data(finished.rows),
        "perturbation": explorer_data.perturbation_data(finished.study, finished.results),
    }


def test_embedded_scores_are_those_of_the_models(data, finished):
    from iumad.study.runner import score_samples

    run = explorer_data.finished_runs(finished.study, finished.results)[0]
    category = data["maps"]["categories"][0]["name"]
    index = open_dataset(finished.study.data).index
    picked = explorer_data.pick_samples(index, category)["sample_id"].tolist()
    maps = score_samples(run, picked, finished.results)
    scores = explorers_scores(run, maps)
    found = data["maps"]["runs"][0]["categories"][0]
    assert [each["score"] for each in found["samples"]] == pytest.approx(scores, rel=1e-4)
    level = (
        decoded(found["samples"][1]["map"]) / 255 * (found["high"] - found["low"]) + found["low"]
    )
    inside = np.clip(maps[1], found["low"], found["high"])
    assert np.abs(level - inside).max() <= (found["high"] - found["low"]) / 255


def explorers_scores(run, maps) -> list[float]:
    from iumad.evaluation.metrics import image_scores

    return image_scores(maps, run.evaluation.image_score, run.evaluation.pool).tolist()


def test_strength_zero_is_the_published_value(data, finished):
    last = finished.rows[finished.rows["step"] == finished.rows["step"].max()]
    perturbed = last["category"].unique()[: explorer_data.CATEGORIES_PERTURBED]
    last = last[last["category"].isin(perturbed)]
    for kind in data["perturbation"]["kinds"]:
        for run in kind["runs"]:
            part = last[(last["method"] == run["name"]) & (last["metric"] == "aupro")]
            assert run["values"]["aupro"][0] == pytest.approx(100 * part["value"].mean(), abs=0.01)


def children(widget, kind: str) -> list:
    own = [widget] if type(widget).__name__ == kind else []
    return own + [
        found for child in getattr(widget, "children", ()) for found in children(child, kind)
    ]


def control(widget, description: str):
    kinds = ("Dropdown", "FloatSlider", "Checkbox")
    return next(c for k in kinds for c in children(widget, k) if c.description == description)


def test_live_maps_follow_their_controls(finished):
    widget = widgets.explore_maps(finished.results)
    pictures, said = children(widget, "HTML")
    run = control(widget, "run")
    assert len(run.options) == len(finished.study.runs())
    for name, value in (("threshold", 0.123), ("opacity", 0.9), ("outline the true defect", False)):
        before = pictures.value
        control(widget, name).value = value
        assert pictures.value != before, name
    before = said.value
    control(widget, "sample").index = 1
    assert said.value != before
    before = pictures.value
    control(widget, "category").index = 1
    assert pictures.value != before
    assert control(widget, "sample").value.startswith(control(widget, "category").value)
    before = said.value
    run.index = 1
    assert said.value != before


def test_live_forgetting_shows_the_rows_of_the_run(finished):
    widget = widgets.explore_forgetting(finished.results)
    picture, table = children(widget, "HTML")
    before = picture.value
    control(widget, "category").index = 1
    assert picture.value != before
    run = control(widget, "run").value
    rows = finished.rows[
        (finished.rows["run_id"] == run.run_id) & (finished.rows["metric"] == "i_auroc")
    ]
    cells = [cell.get_text() for cell in BeautifulSoup(table.value, "html.parser").select("td")]
    shown = [float(text) for text in cells if text != "-"]
    assert sorted(shown) == pytest.approx(sorted((100 * rows["value"]).round(1)))


def test_live_perturbation_scores_the_changed_image(finished):
    widget = widgets.explore_perturbation(finished.results)
    pictures, said = children(widget, "HTML")
    control(widget, "strength").value = 0.0
    assert "+0.0%" in said.value
    before = pictures.value
    control(widget, "strength").value = 0.8
    assert pictures.value != before
    control(widget, "perturbation").index = 1
    assert "perturbed" in said.value


def test_live_data_shows_every_split(finished):
    widget = widgets.explore_data(finished.study)
    (pictures,) = children(widget, "HTML")
    before = pictures.value
    control(widget, "split").value = "train"
    assert "/train/" in control(widget, "sample").value
    assert pictures.value != before


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Iterator:
    """All static explorers on one page in headless chromium, and what went wrong there."""
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
def test_static_maps_are_driven_by_keyboard(page):
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
        lambda root: root.get_by_role("combobox", name="Method").select_option(index=1),
    )
    assert before[1] != now[1]  # another histogram
    before, now = after(page, "maps", lambda root: root.get_by_role("checkbox").press("Space"))
    assert before[0] != now[0]


@pytest.mark.browser
def test_static_maps_tell_the_score_of_the_sample(page, data):
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
    told = float(re.search(r"Image score ([\d.e+-]+)\.", now[2])[1])
    assert told == pytest.approx(score, rel=5e-3)  # three digits


@pytest.mark.browser
def test_static_forgetting_shows_values(page, data):
    before, now = after(
        page,
        "forgetting",
        lambda root: root.get_by_role("combobox", name="Metric").select_option(index=2),
    )
    assert before[1] != now[1]
    page.locator("#iumad-forgetting summary").click()
    cells = page.locator("#iumad-forgetting tbody tr").first.locator("td").all_inner_texts()
    values = data["forgetting"]["groups"][0]["methods"][0]["values"]["aupro"][0]
    assert cells == [f"{value:.1f}" for value in values]
    page.locator("#iumad-forgetting circle").last.hover()  # it covers all others of its place
    last = data["forgetting"]["groups"][0]["methods"][0]["values"]["aupro"][-1][-1]
    assert f": {last:.1f}" in page.locator("#iumad-forgetting .values").inner_text()


@pytest.mark.browser
def test_static_perturbation_changes_picture_and_value(page, data):
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
def test_static_data_follow_category_and_defect(page):
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
def test_static_explorers_have_alternatives_and_fit(page):
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
