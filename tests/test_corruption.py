"""Damaged files: a DataError that names the file, or a whole array; never anything else."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trees
from PIL import Image

from iumad.data.images import read_mask, read_rgb, read_xyz
from iumad.errors import DataError

N_DAMAGES = 300
DAMAGES = ("truncate", "flip", "zero block", "resize", "mode", "nan")
# content and suffix: how it is read
READERS = {
    ("rgb", ".png"): (read_rgb, np.uint8, (3,)),
    ("rgb", ".jpg"): (read_rgb, np.uint8, (3,)),
    ("xyz", ".tiff"): (read_xyz, np.float32, (3,)),
    ("xyz", ".npy"): (read_xyz, np.float32, (3,)),
    ("gt", ".png"): (read_mask, np.bool_, ()),
}
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Files of every content and suffix: cut from real samples where there are some, else generated."""
    folder = tmp_path_factory.mktemp("originals")
    root = Path(os.environ.get("IUMAD_REAL_DATA", REAL_DATA))
    samples = sorted(root.glob("real_rgbd/*/test/pothole"))
    files = {key: [] for key in READERS}
    for number in range(max(1, len(samples))):
        size, store = (48, 40), folder / str(number)
        rgb, xyz, gt = (
            make(size=size) for make in (trees.rgb_array, trees.xyz_array, trees.mask_array)
        )
        if samples:
            rgb = read_rgb(samples[number] / "rgb" / "000.png")
            xyz = read_xyz(samples[number] / "xyz" / "000.tiff")
            gt = read_mask(samples[number] / "gt" / "000.png").astype(np.uint8)
        files["rgb", ".png"].append(trees.write_png(store / "rgb.png", rgb))
        files["rgb", ".jpg"].append(trees.write_png(store / "rgb.jpg", rgb))
        files["xyz", ".tiff"].append(trees.write_xyz(store / "xyz.tiff", xyz))
        np.save(store / "xyz.npy", xyz)
        files["xyz", ".npy"].append(store / "xyz.npy")
        files["gt", ".png"].append(trees.write_png(store / "gt.png", gt))
    return files


def damage(path, kind, rng):
    """Damage a file in place."""
    data = bytearray(path.read_bytes())
    if kind == "truncate":
        del data[int(rng.integers(len(data))) :]
    elif kind == "flip":
        # half of the flips hit the first kilobyte, where the headers are
        for _ in range(int(rng.integers(1, 8))):
            end = min(1024, len(data)) if rng.random() < 0.5 else len(data)
            data[int(rng.integers(end))] ^= int(rng.integers(1, 256))
    elif kind == "zero block":
        start = int(rng.integers(len(data)))
        length = int(rng.integers(1, 4096))
        data[start : start + length] = bytes(len(data[start : start + length]))
    else:
        _rewrite(path, kind, rng)
        return
    path.write_bytes(data)


def _rewrite(path, kind, rng):
    if path.suffix in (".tiff", ".npy"):
        cloud = tifffile.imread(path) if path.suffix == ".tiff" else np.load(path)
        if kind == "resize":
            cloud = cloud[: int(rng.integers(1, 200)), : int(rng.integers(1, 200))]
        elif kind == "mode":
            modes = [cloud[..., 0], cloud[..., :2], cloud.astype(np.int32), cloud.astype("f8")]
            cloud = modes[int(rng.integers(4))]
        else:
            wrong = rng.random(cloud.shape[:2]) < rng.random()
            cloud[wrong] = rng.choice([np.nan, np.inf, -np.inf, 1e38])
        if path.suffix == ".npy":
            np.save(path, cloud)
        else:
            tifffile.imwrite(path, cloud, photometric="minisblack", planarconfig="contig")
        return
    with Image.open(path) as image:
        image.load()
    if kind == "resize":
        image = image.resize((int(rng.integers(1, 300)), int(rng.integers(1, 300))))
    else:
        png_modes = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]
        modes = ["L", "RGB", "CMYK"] if path.suffix == ".jpg" else png_modes
        image = image.convert(rng.choice(modes))
    image.save(path)


def test_damaged_files_are_refused_or_whole(originals, tmp_path):
    rng = np.random.default_rng(0)
    tally = Counter()
    for number in range(N_DAMAGES):
        kind = DAMAGES[number % len(DAMAGES)]
        key = content, suffix = list(READERS)[number // len(DAMAGES) % len(READERS)]
        reader, dtype, channels = READERS[key]
        source = originals[key][int(rng.integers(len(originals[key])))]
        path = tmp_path / f"{number:03d} {content}{suffix}"
        shutil.copyfile(source, path)
        damage(path, kind, rng)
        try:
            array = reader(path)
        except DataError as error:
            text = str(error)
            assert str(path) in text, text
            assert "\n" not in text
            tally[suffix, kind, "refused"] += 1
            continue
        assert array.dtype == dtype
        assert array.shape[2:] == channels
        assert array.ndim == 2 + len(channels)
        assert np.isfinite(array).all()
        assert np.abs(array.astype(np.float64)).max() <= 1e6
        same = np.array_equal(array, reader(source))
        # a PNG has checksums: whichever bytes changed, a wrong array never comes out
        assert same or suffix != ".png" or kind not in ("truncate", "flip", "zero block")
        tally[suffix, kind, "unchanged" if same else "read"] += 1

    for (suffix, kind, outcome), count in sorted(tally.items()):
        print(f"{suffix:6}{kind:12}{outcome:10}{count:4}")  # shown by pytest -s
    assert sum(tally.values()) == N_DAMAGES >= 200
    assert sum(tally[suffix, "truncate", "read"] for _, suffix in READERS) == 0


@pytest.mark.parametrize("compression", ["zlib", None])
@pytest.mark.parametrize("rows_per_strip", [5, None])
def test_every_cut_of_a_tiff_is_refused(tmp_path, compression, rows_per_strip):
    path = tmp_path / "cloud.tiff"
    tifffile.imwrite(
        path,
        trees.xyz_array(),
        photometric="rgb",
        compression=compression,
        rowsperstrip=rows_per_strip,
    )
    np.testing.assert_array_equal(read_xyz(path), trees.xyz_array())
    data = path.read_bytes()
    for length in range(0, len(data) - 8, 7):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cloud\.tiff"):
            read_xyz(path)


def test_every_flipped_byte_of_a_png_is_refused_or_harmless(tmp_path):
    path = trees.write_png(tmp_path / "image.png", trees.rgb_array(size=(6, 5)))
    data, expected = path.read_bytes(), trees.rgb_array(size=(6, 5))
    harmless = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x5A
        path.write_bytes(changed)
        try:
            array = read_rgb(path)
        except DataError as error:
            assert "image.png" in str(error)
            continue
        np.testing.assert_array_equal(array, expected)
        harmless += 1
    assert harmless <= 12  # the end chunk, which holds no pixels
