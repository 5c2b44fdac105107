"""The Snakemake workflow: one job a run, nothing twice, the rest after a kill. Needs the extra `cluster`."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from iumad.config.files import load_params
from iumad.study.claims import PAPER_CLAIMS
from iumad.study.load import load_rows, progress
from iumad.study.steps import steps_of

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflow" / "Snakefile"
PROFILES = ROOT / "workflow" / "profiles"
needs_snakemake = pytest.mark.skipif(
    importlib.util.find_spec("snakemake") is None, reason='needs pip install "iumad[cluster]"'
)


@pytest.fixture
def place(tmp_path) -> Path:
    """A repository with two small studies that share runs, and the notebooks."""
    (tmp_path / "params").mkdir()
    grids = {
        "one": {"methods": {"iuf": {}}, "settings": ["3-0", "2-1"]},
        "two": {"methods": {"iuf": {}, "uniad": {}}, "settings": ["2-1"]},
        "efficiency": {},
    }
    for name, grid in grids.items():
        content = tiny.params(profile=name, **grid)
        (tmp_path / "params" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def snakemake(place: Path, *arguments: str, config: tuple[str, ...] = ()) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", str(WORKFLOW), "--directory", str(place)]
    command += [*arguments, "--config", "common=one", "studies=two", "device=cpu", *config]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs(text: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that snakemake prints first."""
    table = text.split("Job stats:")[1].split("\n\n")[0].splitlines()[3:]
    return {line.split()[0]: int(line.split()[1]) for line in table}


def test_every_study_that_a_notebook_shows_is_run():
    text = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    own = re.findall(r'params_file = \\"\.\./params/(\w+)\.yaml', text)
    beside = [name for name in re.findall(r'beside\(\\"(\w+)', text) if name != "mvtec"]
    claimed = [claim.study for claim in PAPER_CLAIMS if claim.study]
    named = {*own, *beside, *claimed} - {"smoke"}  # shown with the common study
    compared = re.search(r'COMPARED = "(.*)"', WORKFLOW.read_text())[1].split()
    photographs = {name for name in named if name.startswith("real_")}  # of data that lie elsewhere
    assert named - photographs - {"mini", "efficiency", "mvtec3d"} == set(compared)
    assert {"settings", "protection", "rescue", "baselines"} <= named


def test_what_the_workflow_imports_exists():
    for module, names in re.findall(
        r"^from (iumad\S*) import (.+)$", WORKFLOW.read_text(), re.MULTILINE
    ):
        assert all(hasattr(importlib.import_module(module), name) for name in names.split(", "))


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_name_rules_that_exist(profile):
    rules = re.findall(r"^rule (\w+):", WORKFLOW.read_text(), flags=re.MULTILINE)
    content = yaml.safe_load((PROFILES / profile / "config.yaml").read_text())
    named = {*content.get("set-resources", {}), *content.get("set-threads", {})}
    assert named <= set(rules)


@needs_snakemake
def test_a_run_that_two_studies_share_is_one_job(place):
    planned = jobs(snakemake(place, "-n", "--cores", "2"))
    notebooks = len(list((place / "notebooks").glob("*.ipynb")))
    assert planned == {
        **{"all": 1, "book": 1, "efficiency": 1, "notebook": notebooks, "run": 3},
        "total": notebooks + 6,
    }


@needs_snakemake
def test_the_slurm_profile_plans_the_same_jobs_with_its_own_resources(place):
    text = snakemake(place, "-n", "--profile", str(PROFILES / "slurm"), "--cores", "64")
    assert jobs(text)["run"] == 3
    planned = {part.split(":")[0]: part for part in re.split(r"^rule ", text, flags=re.MULTILINE)}
    for name, wanted in {"run": ("32000", "720"), "notebook": ("8000", "60")}.items():
        assert f"mem_mb={wanted[0]}," in planned[name]
        assert f"runtime={wanted[1]}" in planned[name]
    assert "gpu=1" in planned["run"]
    assert "threads: 8\n" in planned["run"]
    assert "threads: 8\n" in planned["efficiency"]


@needs_snakemake
def test_a_folder_of_params_files_is_planned(place):
    shutil.move(place / "params", place / "elsewhere")
    text = snakemake(place, "-n", "--cores", "2", config=("params=elsewhere",))
    assert jobs(text)["run"] == 3
    assert "elsewhere/efficiency.yaml" in text


@needs_snakemake
@pytest.mark.slow
def test_two_cores_make_what_is_missing_and_nothing_else(place):
    first = snakemake(place, "runs", "--cores", "2")
    assert jobs(first)["run"] == 3
    for name in ("one", "two"):
        study = load_params(place / "params" / f"{name}.yaml")
        assert progress(study, place / "results")["finished"].all()
    rows = load_rows(load_params(place / "params" / "two.yaml"), place / "results")
    assert rows["value"].notna().all()
    assert "Nothing to be done" in snakemake(place, "runs", "--cores", "2")

    (run,) = study.select(methods=["uniad"]).runs()
    lost = steps_of(run, place / "results")[-1].rows
    before = lost.read_bytes()
    lost.unlink()
    again = snakemake(place, "runs", "--cores", "2", "--rerun-triggers", "mtime")
    assert jobs(again)["run"] == 1
    assert lost.read_bytes() == before
