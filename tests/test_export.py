"""Export in MVTec 3D-AD's layout: read back the same arrays; a tree with its final name is whole."""

import numpy as np
import pytest
import trees

from iumad.config.sections import FolderConfig, MiniCandiesConfig
from iumad.data import open_dataset
from iumad.data.depth import robust_range, valid_mask
from iumad.data.minicandies import MiniCandies
from iumad.data.perturb import spurious
from iumad.data.prepare import for_the_eye
from iumad.data.public import MVTec, MVTec3D, export_mvtec3d
from iumad.errors import DataError


@pytest.fixture(scope="module")
def candies():
    counts = {"n_train": 2, "n_validation": 1, "n_test_good": 1, "n_test_defect": 6}
    return MiniCandies(MiniCandiesConfig(image_size=32, categories=("waffle", "mint"), **counts))


def test_written_files_read_back_as_the_same_samples(candies, tmp_path):
    ticks = []
    root = export_mvtec3d(candies, tmp_path / "a b" / "candies", lambda: ticks.append(1))
    assert len(ticks) == len(candies.index) == 2 * (2 + 1 + 1 + 6)
    assert not (root / "mint" / "train" / "good" / "gt").exists()
    assert (root / "mint" / "test" / "good" / "gt" / "000.png").exists()

    read = MVTec3D(root, candies.categories)
    columns = ["sample_id", "category", "split", "defect", "label", "height", "width"]
    assert read.index[columns].equals(candies.index[columns])
    for sample_id in candies.index["sample_id"]:
        ours, theirs = candies.load(sample_id), read.load(sample_id)
        for name in ("rgb", "xyz", "mask"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_nothing_is_overwritten(candies, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(DataError, match="empty or does not exist"):
        export_mvtec3d(candies, tmp_path)
    with pytest.raises(DataError, match="empty or does not exist"):
        export_mvtec3d(candies, tmp_path / "keep.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_an_empty_folder_may_be_filled(candies, tmp_path):
    root = tmp_path / "out"
    root.mkdir()
    export_mvtec3d(candies, root)
    assert {path.name for path in root.iterdir()} == {"waffle", "mint"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_export_never_has_the_final_name(candies, tmp_path):
    root = tmp_path / "out"
    seen = []

    def look_then_stop():
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_mvtec3d(candies, root, look_then_stop)
    assert len(seen) == 1
    assert seen[0].startswith(".out-unfinished-")
    assert list(tmp_path.iterdir()) == []


def test_needs_depth_and_a_writable_place(candies, tmp_path):
    flat = MVTec(trees.small_mvtec(tmp_path / "flat"))
    with pytest.raises(DataError, match="'mvtec' has no depth"):
        export_mvtec3d(flat, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        export_mvtec3d(candies, tmp_path / "file" / "out")


def test_without_the_plane_from_the_folder_to_the_models_input(tmp_path):
    """`remove_plane`: the object's pixels stay, depth is scaled inside them, features are others."""
    chosen = {"categories": ("waffle", "mint"), "image_size": 64}
    counts = {"n_train": 2, "n_validation": 1, "n_test_good": 1, "n_test_defect": 6}
    drawn = MiniCandies(MiniCandiesConfig(**chosen, **counts))
    root = export_mvtec3d(drawn, tmp_path / "candies")
    config = FolderConfig(name="mvtec3d", root=root, remove_plane=True, **chosen)
    cut = open_dataset(config)
    assert cut.categories == chosen["categories"]
    for sample_id in cut.index["sample_id"]:
        whole, sample = drawn.load(sample_id), cut.load(sample_id)
        valid = valid_mask(whole.xyz)
        found, known = sample.foreground & valid, whole.foreground & valid
        assert (found & known).sum() > 0.93 * (found | known).sum()
        assert np.array_equal(valid_mask(sample.xyz), sample.foreground)
        assert np.array_equal(sample.xyz[sample.foreground], whole.xyz[sample.foreground])
        assert np.array_equal(sample.mask, whole.mask)

        depth = for_the_eye(sample, config, cut.modalities).depth
        low, high = robust_range(sample.xyz[..., 2][sample.foreground])
        inside = np.clip((sample.xyz[..., 2] - low) / (high - low), 0, 1)
        # float32 steps of z, 3e-8 m, over a range of about 2 cm
        np.testing.assert_allclose(depth[found, 0], inside[found], atol=1e-5)
        with_plane = for_the_eye(whole, config, cut.modalities).depth
        assert depth[found].std() > with_plane[found].std()  # the table no longer takes the range

    # what was estimated serves the spurious perturbation, without the generator's knowledge
    donor = cut.load("mint/train/good/000")
    blended = spurious(cut.load("waffle/train/good/000"), donor, 0.5)
    assert blended.rgb.shape == donor.rgb.shape
