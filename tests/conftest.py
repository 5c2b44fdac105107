"""Shared fixtures: the hypothesis profile and the optional folder of real images."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# no deadline: shared machines are slow; derandomised: a red run can be repeated exactly
settings.register_profile(
    "study",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("IUMAD_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("study")


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
