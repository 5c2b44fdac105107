"""BTF's surface features: means over cells by hand, FPFH of simple surfaces, and a clear word without Open3D."""

import importlib.util
import sys

import numpy as np
import pytest
import tiny
import torch

from iumad.data import open_dataset
from iumad.errors import ConfigError
from iumad.features import open_store
from iumad.features.cache import FeatureStore, SurfaceStore, cell_means, fpfh_map
from iumad.study.runner import run_study

CPU = torch.device("cpu")
needs_open3d = pytest.mark.skipif(
    importlib.util.find_spec("open3d") is None, reason='needs pip install "iumad[fpfh]"'
)


def plane(size: int = 32, slope: float = 0.0) -> np.ndarray:
    """Half a metre away, a millimetre from point to point."""
    x, y = np.meshgrid(np.arange(size) / 1000, np.arange(size) / 1000)
    return np.stack([x, y, 0.5 + slope * x], axis=-1).astype(np.float32)


def test_means_over_cells_by_hand():
    valid = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1]], dtype=bool)
    values = np.arange(1.0, 9.0)[:, None] * [1, 10]  # 1, 2 / 3 / 4, 5, 6 / 7, 8 row by row
    means = cell_means(values, valid, grid=2)
    # cells: (1 + 2 + 3) / 3, none, 4, (5 + 6 + 7 + 8) / 4
    assert means.tolist() == [[[2, 0], [4, 6.5]], [[20, 0], [40, 65]]]


def test_btf_is_a_bank_with_a_store_of_its_own():
    btf, bank = (tiny.run(method) for method in ("btf", "bank"))
    dataset = open_dataset(btf.data)
    assert isinstance(open_store(dataset, btf, CPU), SurfaceStore)
    assert type(open_store(dataset, bank, CPU)) is FeatureStore


def test_depth_features_are_those_of_the_surface(monkeypatch, tmp_path):
    calls = []

    def counted(xyz, grid):
        calls.append(xyz.shape)
        return np.full((33, grid, grid), xyz[..., 2].max(), dtype=np.float32)

    monkeypatch.setattr("iumad.features.cache.fpfh_map", counted)
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path))
    run = tiny.run("btf")
    dataset = open_dataset(run.data)
    ids = dataset.index["sample_id"].tolist()[:2]
    store = open_store(dataset, run, CPU)
    batch = store.batch(ids)
    assert batch.features["depth"].shape == (2, 33, tiny.GRID, tiny.GRID)
    for i, sample_id in enumerate(ids):
        assert (batch.features["depth"][i] == dataset.load(sample_id).xyz[..., 2].max()).all()
    plain = FeatureStore(dataset, run).batch(ids)
    assert torch.equal(batch.features["rgb"], plain.features["rgb"])
    store.batch(ids)
    assert len(calls) == 2  # the second time they are read
    with pytest.raises(ConfigError, match="point clouds"):
        store.assemble([store.prepared(ids[0])], [0])


def test_without_open3d_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ConfigError, match=r'pip install "iumad\[fpfh\]"'):
        fpfh_map(plane(), 4)


@needs_open3d
def test_a_plane_is_the_same_everywhere_and_a_bump_is_not():
    flat = fpfh_map(plane(), 4)
    assert flat.shape == (33, 4, 4)
    inner = flat[:, 1:3, 1:3].reshape(33, -1)
    assert np.abs(inner - inner[:, :1]).max() < 1
    bumpy = plane()
    bumpy[12:20, 12:20, 2] -= 0.004
    changed = np.abs(fpfh_map(bumpy, 4) - flat).sum(axis=0)
    assert changed[1:3, 1:3].min() > 10 * max(changed[0, 0], 1)


@needs_open3d
def test_turning_a_surface_changes_little():
    rng = np.random.default_rng(0)
    bumps = rng.normal(0, 0.001, (32, 32)).astype(np.float32)
    cloud = plane()
    cloud[..., 2] += bumps
    angle = np.deg2rad(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    turned = (cloud @ turn.T).astype(np.float32)
    first, second = fpfh_map(cloud, 4), fpfh_map(turned, 4)
    assert np.abs(first - second).max() < 0.05 * first.max()


@needs_open3d
@pytest.mark.slow
def test_btf_runs_from_images_to_rows(tmp_path):
    rows = run_study(tiny.study(methods={"btf": {}}, modalities=["depth", "rgb+depth"]), tmp_path)
    assert rows["value"].notna().all()
    assert set(rows["modality"]) == {"depth", "rgb+depth"}
