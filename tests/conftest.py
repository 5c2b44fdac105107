"""Shared fixtures: the hypothesis profile and the optional folder of real images."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads only wait on tiny tensors

import pytest
import tiny
import yaml
from hypothesis import HealthCheck, settings

# nbformat loads this where it is installed: seconds for the grammar of addresses, which no notebook has
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
pytest_plugins = ["attack.tally"]
REPOSITORY = Path(__file__).resolve().parents[1]

# no deadline: shared machines are slow; derandomised: a red run can be repeated exactly
settings.register_profile(
    "study",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("IUMAD_EXAMPLES", "25")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("study")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and all tests of the built book, in one process; the latter are slow."""
    for item in items:
        of_book = "built_book" in getattr(item, "fixturenames", ())
        if of_book:
            item.add_marker(pytest.mark.slow)
        item.add_marker(pytest.mark.xdist_group("book" if of_book else item.path.stem))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder that holds real_rgbd (MVTec 3D-AD layout) and real_rgb (MVTec AD layout)."""
    folder = Path(os.environ.get("IUMAD_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "real_rgbd").is_dir():
        pytest.skip(f"real images not found in {folder}; set IUMAD_REAL_DATA to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache folder of this session: no test reads or fills the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IUMAD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tiny.Finished:
    """A very small study that has been run: its params file, results folder and rows."""
    from iumad.study.runner import run_study

    folder = tmp_path_factory.mktemp("finished")
    study = tiny.study(**tiny.FINISHED)
    params = folder / "tiny.yaml"
    params.write_text(yaml.safe_dump(tiny.params(**tiny.FINISHED), sort_keys=False))
    return tiny.Finished(params, study, folder / "results", run_study(study, folder / "results"))


@pytest.fixture(scope="session")
def measured(finished: tiny.Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The study of `finished` and a copy of its results folder in which all measurements are made."""
    from iumad.study.measure import measure

    folder = tmp_path_factory.mktemp("measured") / "results"
    shutil.copytree(finished.results, folder)
    measure(finished.study, folder)
    return finished.study, folder


@pytest.fixture(scope="session")
def built_book(
    tmp_path_factory: pytest.TempPathFactory, finished: tiny.Finished, measured: tuple
) -> Path:
    """Folder of the book's pages, from notebooks that show the study of `finished` and its measurements."""
    from iumad.report.book import make_book

    _, results = measured
    return make_book(finished.params, tmp_path_factory.mktemp("book"), REPOSITORY, results).parent
