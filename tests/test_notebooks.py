"""The notebooks: short cells and no typed results; `.ci/fresh_clone` executes all of them without torch."""

import ast
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest
import tiny
import yaml
from books import shown

from iumad.report.book import failures, own_study

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLISHED = ROOT / "book" / "executed"
WITHOUT_STUDY = ("02_model_step_by_step", "04_theory", "31_your_images")


def stem(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_published_notebooks_succeeded_and_are_current(path):
    done = PUBLISHED / path.name
    assert failures(done) == []
    ran, source = (
        [c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "code"]
        for p in (done, path)
    )
    assert ran == source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_parameters_are_three_short_lines(path):
    names = set(papermill.inspect_notebook(str(path)))
    cells = nbformat.read(path, as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    assert len(source.splitlines()) <= 3
    if path.stem not in WITHOUT_STUDY:
        assert names == {"params_file", "results", "run"}
        own = own_study(path)
        assert own is None or own.exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_prose_types_no_result(path):
    """Numbers with a percent sign or points belong to computed outputs."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    found = re.findall(r"\d+\.\d+ (?:%|points)", prose)
    assert found == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=stem)
def test_what_a_cell_makes_is_shown(path):
    """Jupyter shows the last expression of a cell; one before it must be shown or must do something."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    calls = [
        ast.unparse(line.value.func)
        for source in cells
        for line in ast.parse(source).body[:-1]
        if isinstance(line, ast.Expr) and isinstance(line.value, ast.Call)
    ]
    made = {"box", "fold", "table", "status", "provenance"}
    assert [call for call in calls if call.split(".")[-1] in made] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["11_incremental", "12_anomaly_maps", "18_ablation", "30_explore"])
def test_a_notebook_runs_its_own_study(name, tmp_path):
    """`run=True` trains what is missing; then the page shows own numbers and says so."""
    params = tmp_path / "tiny.yaml"
    params.write_text(yaml.safe_dump(tiny.params(**tiny.FINISHED), sort_keys=False))
    given = {"params_file": str(params), "results": str(tmp_path / "results"), "run": True}
    source, out = ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb"
    folder = str(source.parent)
    papermill.execute_notebook(
        source, out, given, cwd=folder, kernel_name="python3", progress_bar=False
    )
    assert failures(out) == []
    assert "all 3 runs were made here" in " ".join(shown(out))
    assert (tmp_path / "results" / "steps").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if own_study(p)], ids=stem)
def test_a_study_that_nobody_ran_says_so(path, tmp_path):
    """No page fails and no page is silent where neither own nor published numbers exist."""
    (tmp_path / "results").mkdir()
    given = {"results": str(tmp_path / "results")}
    out, folder = tmp_path / path.name, str(path.parent)
    papermill.execute_notebook(
        path, out, given, cwd=folder, kernel_name="python3", progress_bar=False
    )
    assert failures(out) == []
    text = " ".join(shown(out)).lower()
    assert re.search(r"no run is finished|not run|not measured", text), json.dumps(text[:500])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "study"), [("10_training", "settings"), ("21_forgetting", "keep")]
)
def test_a_page_of_full_size_needs_no_data(name, study, tmp_path):
    given = {"params_file": str(ROOT / "params" / "mvtec3d" / f"{study}.yaml")}
    out, source = tmp_path / "out.ipynb", ROOT / "notebooks" / f"{name}.ipynb"
    folder = str(source.parent)
    papermill.execute_notebook(
        source, out, given, cwd=folder, kernel_name="python3", progress_bar=False
    )
    assert failures(out) == []
