"""Damaged and odd files in data sets: `iumad data check` names them, or every sample can be used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import trees
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from attack.tally import Area
from iumad.data.check import check_dataset, open_folder
from iumad.errors import DataError

AREA = Area("data")
pytestmark = pytest.mark.slow
LAYOUTS = {"mvtec3d": trees.small_mvtec3d, "mvtec": trees.small_mvtec}


def image(array: np.ndarray, **options: object) -> Callable[[Path], None]:
    """Writes an image as TIFF or PNG, whichever the file's name says."""

    def write(path: Path) -> None:
        if path.suffix == ".tiff":
            tifffile.imwrite(path, array, photometric="minisblack")
        else:
            Image.fromarray(array).save(path, format="PNG", **options)

    return write


def cloud(change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    """Writes a point cloud with a change."""

    def write(path: Path) -> None:
        points = trees.xyz_array()
        change(points)
        tifffile.imwrite(path, points, photometric="rgb")

    return write


def fill(value: float) -> Callable[[Path], None]:
    return cloud(lambda points: points.fill(value))


H, W = trees.SIZE
CONTENTS: dict[str, Callable[[Path], object]] = {
    "one pixel": image(np.zeros((1, 1, 3), np.uint8)),
    "turned": image(np.zeros((W, H, 3), np.uint8)),
    "grey": image(np.full((H, W), 7, np.uint8)),
    "16 bits": image(np.full((H, W), 700, np.uint16)),
    "with alpha": image(np.zeros((H, W, 4), np.uint8)),
    "truth": image(np.ones((H, W), bool)),
    "two channels": lambda path: tifffile.imwrite(
        path, np.zeros((2, H, W), np.float32), photometric="minisblack"
    ),
    "five dimensions": lambda path: tifffile.imwrite(
        path, np.zeros((1, 2, 2, H, W), np.uint8), photometric="minisblack"
    ),
    "complex": lambda path: tifffile.imwrite(
        path, np.zeros((H, W, 3), np.complex64), photometric="minisblack"
    ),
    "NaN": fill(np.nan),
    "infinite": fill(np.inf),
    "negative": fill(-1.0),
    "zero": fill(0.0),
    "huge": fill(3e38),
    "tiny": fill(1e-40),
    "in mm": cloud(lambda points: np.multiply(points, 1000, out=points)),
    "GIF": lambda path: Image.new("RGB", (W, H)).save(path, format="GIF"),
    "animated": lambda path: Image.new("P", (W, H)).save(
        path, format="GIF", save_all=True, append_images=[Image.new("P", (W, H), 3)]
    ),
    "JPEG": lambda path: Image.new("RGB", (W, H)).save(path, format="JPEG"),
    "text": lambda path: path.write_text("hello"),
    "pickle": lambda path: path.write_bytes(b"\x80\x04\x95cos\nsystem\n."),
    "SVG": lambda path: path.write_text("<svg><script>alert(1)</script></svg>"),
    "gone": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "pipe": lambda path: (path.unlink(), path.symlink_to("/dev/null")),
    "upper case": lambda path: path.rename(path.with_suffix(path.suffix.upper())),
    "other name": lambda path: path.rename(path.with_name(f"x{path.name}")),
    "twice": lambda path: shutil.copy(path, path.with_suffix(".bmp")),
    "hidden": lambda path: path.rename(path.with_name(f".{path.name}")),
}


def damages() -> st.SearchStrategy:
    """A name and a function that spoils a file."""
    known = st.sampled_from(sorted(CONTENTS)).map(lambda name: (name, CONTENTS[name]))

    def flipped(place: float, bits: int) -> tuple[str, Callable[[Path], object]]:
        def write(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[int(place * len(content))] ^= bits
            path.write_bytes(content)

        return f"flip {place}", write

    def cut(share: float) -> tuple[str, Callable[[Path], object]]:
        def write(path: Path) -> None:
            content = path.read_bytes()
            path.write_bytes(content[: int(share * len(content))])

        return f"cut {share}", write

    share = st.floats(0, 1, exclude_max=True)
    return known | st.builds(flipped, share, st.integers(1, 255)) | st.builds(cut, share)


def use_everything(root: Path) -> None:
    """What the check calls clean can be loaded, every image of it, and has usable numbers."""
    report = check_dataset(root)
    if not report.ok:
        raise DataError(report.errors[0])
    dataset = open_folder(root)
    for sample_id in dataset.index["sample_id"]:
        sample = dataset.load(sample_id)
        assert sample.rgb is not None and sample.rgb.dtype == np.uint8
        assert sample.rgb.shape[:2] == sample.mask.shape
        if sample.xyz is not None:
            z = sample.xyz[..., 2]
            assert z.shape == sample.mask.shape
            assert np.isfinite(z[z > 0]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_damaged_data(tmp_path_factory, layout, data):
    root = LAYOUTS[layout](tmp_path_factory.mktemp("data") / layout)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    victim = data.draw(st.sampled_from(files))
    name, spoil = data.draw(damages())
    spoil(victim)
    with AREA.attempt(f"{victim.relative_to(root)}: {name}", str(root)):
        use_everything(root)
    shutil.rmtree(root.parent)
