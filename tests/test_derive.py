"""The pages' studies for other data: files that load, full sizes, runs that the paper's grids share."""

import shutil

import pytest
import yaml

from iumad.config import load_params
from iumad.data import categories_of
from iumad.derive import derive_studies
from iumad.errors import ConfigError
from iumad.profiles import COMPARED, STUDIES


@pytest.fixture
def params(repository, tmp_path):
    """A copy of the params files."""
    (tmp_path / "params").mkdir()
    for path in (repository / "params").glob("*.yaml"):
        shutil.copy(path, tmp_path / "params")
    return tmp_path / "params"


@pytest.mark.parametrize("name", ["mvtec3d", "eyecandies"])
def test_every_study_has_the_full_size(params, name):
    given = load_params(params / f"{name}.yaml")
    files = derive_studies(params / f"{name}.yaml", params / name)
    assert [file.stem for file in files] == list(STUDIES)
    for file in files:
        assert f" of {name}.yaml; made by" in file.read_text().splitlines()[0]
        study = load_params(file)
        assert study.profile == f"{name}/{file.stem}"
        assert study.features == given.features
        data = study.data
        assert (data.name, data.root, data.image_size) == (name, given.data.root, 224)
        for run in [run for run in study.runs() if run.model.kind == "reconstruction"]:
            assert (run.training.epochs, run.increment.epochs) == (1000, 800)
            assert (run.model.dim == 256) != run.method.startswith("wide")
            assert (run.model.heads, run.model.layers) == (8, 4)
            assert run.evaluation == given.evaluation


def test_the_comparison_itself_stays(params):
    derive_studies(params / "mvtec3d.yaml", params / "mvtec3d")
    for name in set(COMPARED) - {"baselines"}:
        mini, full = (load_params(f / f"{name}.yaml") for f in (params, params / "mvtec3d"))
        assert list(full.methods) == list(mini.methods)
        for key in ("modalities", "settings", "seeds"):
            assert getattr(full, key) == getattr(mini, key)
    baselines = load_params(params / "mvtec3d" / "baselines.yaml")
    given = load_params(params / "baselines_full.yaml")
    assert [run.run_id for run in baselines.runs()] == [run.run_id for run in given.runs()]


def test_runs_of_the_papers_grid_are_made_once(params):
    derive_studies(params / "mvtec3d.yaml", params / "mvtec3d")
    grid = {run.run_id for run in load_params(params / "mvtec3d.yaml").runs()}
    settings = load_params(params / "mvtec3d" / "settings.yaml")
    shared = settings.select(methods=["iuf", "ib-iumad"]).runs()
    assert len(shared) == 2 * 3 * 4 * 3  # methods, modalities, settings, seeds
    assert {run.run_id for run in shared} <= grid


def test_sizes_of_a_method_follow(params):
    derive_studies(params / "mvtec3d.yaml", params / "mvtec3d")
    studies = {name: load_params(params / "mvtec3d" / f"{name}.yaml") for name in STUDIES}
    wide = studies["switches"].select(methods=["wide"]).runs()[0]
    assert wide.model.dim == 512  # 128 in a study of 64
    names = categories_of(studies["bottleneck"].data)
    assert names == ("bagel", "cable_gland", "carrot")  # three, as in the study
    bank = studies["settings"].select(methods=["memory-bank"]).runs()[0]
    assert bank.model.coreset == 0.1  # as in baselines_full.yaml
    mambaad = studies["efficiency"].select(methods=["mambaad"]).runs()[0]
    assert mambaad.model.dim == 256


def test_a_changed_key_reaches_every_study(params):
    files = derive_studies(params / "mvtec3d.yaml", params / "out", ["data.root=elsewhere"])
    roots = {yaml.safe_load(file.read_text())["data"]["root"] for file in files}
    assert roots == {"elsewhere"}


def test_the_same_files_again_are_no_mistake_and_others_are_kept(params):
    files = derive_studies(params / "mvtec3d.yaml", params / "out")
    assert derive_studies(params / "mvtec3d.yaml", params / "out") == files
    files[0].unlink()
    files[-1].write_text("profile: mine\n")
    with pytest.raises(ConfigError, match=r"efficiency\.yaml: exists and differs"):
        derive_studies(params / "mvtec3d.yaml", params / "out")
    assert not files[0].exists()
    with pytest.raises(ConfigError, match=r"mini\.yaml: exists and differs"):
        derive_studies(params / "mvtec3d.yaml", params)


def test_settings_that_do_not_fit_the_data_are_refused(params):
    few = ["data.categories=[foam, rope]"]
    with pytest.raises(ConfigError, match=r"mini\.yaml with .*mvtec3d\.yaml: .*6-1"):
        derive_studies(params / "mvtec3d.yaml", params / "out", few)
    assert not (params / "out").exists()


def test_a_missing_study_is_named(params):
    (params / "fusion.yaml").unlink()
    with pytest.raises(ConfigError, match=r"fusion\.yaml: cannot be read"):
        derive_studies(params / "mvtec3d.yaml", params / "out")
