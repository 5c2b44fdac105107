"""The comparison notebooks: they show what is finished, say what is not run, and type no result."""

import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import tiny

from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.report.book import execute_notebook, failures
from iumad.study import costs
from iumad.study.costs import costs_file
from iumad.study.results import write_step_table, write_table
from iumad.study.steps import steps_of

ROOT = Path(__file__).resolve().parents[1]
OWN_STUDY = {
    "04_spurious_redundant": "spurious",
    "05_settings": "settings",
    "06_unified": "unified",
    "07_ablation": "ablation",
    "08_fusion": "fusion",
    "09_efficiency": "efficiency",
    "15_others": "baselines",
    "10_claims": "settings",
}
OTHERS = [
    "settings_many",
    "switches",
    "protection",
    "bottleneck",
]  # shown on pages of another study
STUDIES = [*dict.fromkeys(OWN_STUDY.values()), *OTHERS]


def made_up(study: StudyConfig, folder: Path) -> None:
    """Write results that nobody measured, so that pages can be tested without training."""
    for run in study.runs():
        rng = np.random.default_rng(run.seed)
        for step in steps_of(run, folder):
            if step.rows.exists():
                continue
            names = ["i_auroc", "p_auroc", "aupro"]
            table = pd.DataFrame(
                [(c, m) for c in step.seen for m in names], columns=["category", "metric"]
            )
            values = rng.uniform(0.6, 0.9, len(table))
            write_step_table(table.assign(value=values, n_good=8, n_defect=14), step.rows)


def made_up_costs(study: StudyConfig, folder: Path) -> None:
    rows = []
    for run in costs.runs_to_measure(study):
        points = [(10, 128, 1), (10, 128, 32), (1, 128, 1), (5, 128, 1), (10, 64, 1), (10, 256, 1)]
        for n, size, batch in points:
            what = (run.method, run.modality, n, size, batch, "made up")
            for repeat in range(3 * costs.REPEATS):
                rows += [(*what, repeat, "latency (ms)", 50.0), (*what, repeat, "frames/s", 20.0)]
            for repeat in range(3):
                rows.append((*what, repeat, "model (MB)", 9.0))
                rows.append((*what, repeat, "peak memory (MB)", 900.0 + repeat))
    write_table(pd.DataFrame(rows, columns=costs.COLUMNS), costs_file(study, folder))


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """Results folder in which every run of every study lies finished, with made-up values."""
    folder = tmp_path_factory.mktemp("complete")
    for name in STUDIES:
        made_up(load_params(ROOT / "params" / f"{name}.yaml"), folder)
    made_up_costs(load_params(ROOT / "params" / "efficiency.yaml"), folder)
    return folder


def execute(name: str, folder: Path, results: Path, **parameters) -> str:
    """Everything that the executed notebook shows, as text."""
    source, out = ROOT / "notebooks" / f"{name}.ipynb", folder / f"{name}.ipynb"
    parameters["results"] = str(results)
    papermill.execute_notebook(
        source, out, parameters, kernel_name="python3", cwd=source.parent, progress_bar=False
    )
    assert failures(out) == []
    outputs = [
        output.get("data", {})
        for cell in nbformat.read(out, as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    kinds = ("text/html", "text/markdown")
    return "\n".join("".join(data[kind]) for data in outputs for kind in kinds if kind in data)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_STUDY)
def test_a_complete_study_is_shown_whole(name, complete, tmp_path):
    text = execute(name, tmp_path, complete)
    if name not in ("04_spurious_redundant", "10_claims"):  # one of their claims needs floors
        assert "not run" not in text.lower()
    if name in ("05_settings", "06_unified", "09_efficiency", "15_others"):
        assert all(method in text for method in ("mambaad", "simplenet", "unimmad-lite"))
    if name in ("04_spurious_redundant", "07_ablation", "08_fusion", "10_claims"):
        assert re.search(
            r"supported|contradicted|no difference|undecided|not trained enough|not run", text
        )


@pytest.mark.slow
def test_what_is_missing_is_said(tmp_path):
    assert "0 of 87 runs" in (text := execute("05_settings", tmp_path, tmp_path / "nowhere"))
    assert "iumad run params/settings.yaml" in text
    assert text.count("not run") >= 29 * 3  # cells of the grid, by metrics
    text = execute("10_claims", tmp_path, tmp_path / "nowhere")
    assert "not run: iuf (rgb), iuf+redundant-1 (rgb); params/spurious.yaml has them" in text
    assert ">supported<" not in text


@pytest.mark.slow
def test_a_trained_study_of_another_profile_is_shown(finished, tmp_path):
    content = tiny.params(**tiny.FINISHED)
    text = execute("05_settings", tmp_path, finished.results, **content)
    assert "3 of 3 runs" in text
    rows = finished.rows
    last = rows[(rows["method"] == "iuf") & (rows["metric"] == "p_auroc") & (rows["step"] == 1)]
    assert f"{100 * last['value'].mean():.1f}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["06_unified", "07_ablation", "09_efficiency", "10_claims"])
def test_the_paper_s_grid_is_shown_without_its_data(name, tmp_path):
    (tmp_path / "notebooks").mkdir()
    notebook = tmp_path / "notebooks" / f"{name}.ipynb"
    notebook.write_text((ROOT / "notebooks" / notebook.name).read_text())
    shutil.copytree(ROOT / "params", tmp_path / "params")
    params = tmp_path / "params" / "mvtec3d" / "settings.yaml"
    page = execute_notebook(notebook, params, tmp_path / "out")
    assert not failures(page)
    assert "not run" in page.read_text() or "not measured" in page.read_text()


@pytest.mark.parametrize("name", OWN_STUDY)
def test_a_notebook_reads_its_own_params_file(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    assert f'params_file = "../params/{OWN_STUDY[name]}.yaml"' in source
