"""Write any RGB-D data set in the folder layout of MVTec 3D-AD, for other programs to read."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile
from PIL import Image

from iumad.data.sample import Dataset, Sample
from iumad.errors import DataError


def export_mvtec3d(
    dataset: Dataset, root: Path, advance: Callable[[], object] | None = None
) -> Path:
    """Write ``<category>/<split>/<defect>/{rgb,xyz,gt}/NNN.*`` for every sample.

    ``rgb`` is PNG, ``xyz`` a float32 TIFF in metres with (0, 0, 0) where invalid, ``gt`` (test only)
    an 8-bit PNG with 255 on the defect. Numbers count within each folder from 000, in the order of
    the index. The tree grows in a temporary folder beside `root`, named ``.<name>-unfinished-...``,
    and takes its place when complete: a tree called `root` is always whole.

    Parameters
    ----------
    dataset
        With depth.
    root
        A folder that does not exist or is empty.
    advance
        Called after each sample, e.g. the update of a progress bar.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    DataError
        The data set has no depth, `root` is a file or holds something, or cannot be written.
    """
    if "depth" not in dataset.modalities:
        raise DataError(f"data set {dataset.name!r} has no depth, which MVTec 3D-AD's layout needs")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: export needs a folder that is empty or does not exist yet")

    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{root.name}-unfinished-"
        with TemporaryDirectory(prefix=prefix, dir=root.parent) as unfinished:
            tree = Path(unfinished) / root.name
            tree.mkdir()
            groups = dataset.index.groupby(["category", "split", "defect"], sort=False)
            for (category, split, defect), group in groups:
                for number, sample_id in enumerate(group["sample_id"]):
                    folder = tree / category / split / defect
                    write_sample(dataset.load(sample_id), folder, f"{number:03d}")
                    if advance is not None:
                        advance()
            tree.replace(root)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error})") from error
    return root


def write_sample(sample: Sample, folder: Path, stem: str) -> None:
    """Write ``rgb/<stem>.png``, ``xyz/<stem>.tiff`` and, for test samples, ``gt/<stem>.png``."""
    for kind in ("rgb", "xyz", "gt"):
        if kind != "gt" or sample.split == "test":
            (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.rgb).save(folder / "rgb" / f"{stem}.png")
    tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", sample.xyz, photometric="rgb")
    if sample.split == "test" and sample.mask is not None:
        mask = np.where(sample.mask, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / "gt" / f"{stem}.png")
