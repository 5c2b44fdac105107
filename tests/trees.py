"""Small data sets on disk for the tests, in the layouts of the public ones."""

import os
from pathlib import Path

import numpy as np
import tifffile
import yaml
from PIL import Image

from iumad.data.public import EYECANDIES, MVTEC_3D_AD

SIZE = (12, 10)  # height, width


def rgb_array(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def xyz_array(seed=0, size=SIZE):
    z = 0.5 + 0.01 * np.random.default_rng(seed).random(size)
    rows, columns = np.indices(size)
    return np.stack([columns * 1e-3, rows * 1e-3, z], axis=-1).astype(np.float32)


def mask_array(marked=True, size=SIZE):
    mask = np.zeros(size, dtype=np.uint8)
    mask[3:6, 2:5] = 255 * marked
    return mask


def write_png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_xyz(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="rgb")
    return path


def write_mvtec3d_sample(folder: Path, stem: str, marked: bool, seed=0, gt=True, size=SIZE) -> None:
    write_png(folder / "rgb" / f"{stem}.png", rgb_array(seed, size))
    write_xyz(folder / "xyz" / f"{stem}.tiff", xyz_array(seed, size))
    if gt:
        write_png(folder / "gt" / f"{stem}.png", mask_array(marked, size))


SMALL = (  # split, defect, stem; the place in the list is the seed of the images
    ("train", "good", "000"),
    ("train", "good", "001"),
    ("validation", "good", "000"),
    ("test", "good", "000"),
    ("test", "hole", "000"),
    ("test", "color", "000"),
)


def small_mvtec3d(root: Path, categories=("bolt", "nut")) -> Path:
    """Two good training, one validation, one good and two defective test samples per category."""
    for category in categories:
        for seed, (split, defect, stem) in enumerate(SMALL):
            folder = root / category / split / defect
            write_mvtec3d_sample(folder, stem, defect != "good", seed, gt=split == "test")
    return root


def large_mvtec3d(root: Path) -> Path:
    """MVTec 3D-AD's categories and defects with images as large as its own, but few of them."""
    for seed, (category, (*_, defects)) in enumerate(MVTEC_3D_AD.items()):
        size = (400 + 100 * (seed % 6),) * 2  # theirs: 400 to 900 pixels
        for stem in ("000", "001"):
            folder = root / category / "train" / "good"
            write_mvtec3d_sample(folder, stem, False, 10 * seed + int(stem), False, size)
        for place, defect in enumerate(("good", *defects)):
            folder = root / category / "test" / defect
            write_mvtec3d_sample(folder, "000", defect != "good", 10 * seed + 2 + place, size=size)
    return root


def small_mvtec(root: Path) -> Path:
    for seed, stem in enumerate(("000", "001")):
        write_png(root / "bolt" / "train" / "good" / f"{stem}.png", rgb_array(seed))
    write_png(root / "bolt" / "test" / "good" / "000.png", rgb_array(2))
    write_png(root / "bolt" / "test" / "cut" / "000.png", rgb_array(3))
    write_png(root / "bolt" / "ground_truth" / "cut" / "000_mask.png", mask_array())
    return root


def full_mvtec3d(root: Path) -> Path:
    """Make MVTec 3D-AD's exact tree: every file is a link to one of three tiny ones."""
    rgb = write_png(root.parent / "rgb.png", rgb_array())
    xyz = write_xyz(root.parent / "xyz.tiff", xyz_array())
    masks = [
        write_png(root.parent / f"gt{marked}.png", mask_array(marked)) for marked in (False, True)
    ]

    def link(folder: Path, count: int, mask: Path | None) -> None:
        kinds = {"rgb": rgb, "xyz": xyz} | ({"gt": mask} if mask else {})
        for kind, source in kinds.items():
            (folder / kind).mkdir(parents=True)
            for number in range(count):
                os.link(source, folder / kind / f"{number:03d}{source.suffix}")

    for category, (train, validation, good, defects) in MVTEC_3D_AD.items():
        link(root / category / "train" / "good", train, None)
        link(root / category / "validation" / "good", validation, None)
        link(root / category / "test" / "good", good, masks[False])
        for defect, count in defects.items():
            link(root / category / "test" / defect, count, masks[True])
    return root


class EyecandiesTree:
    """Writes samples with all 16 items; equal items are one file with many links."""

    def __init__(self, root: Path, store: Path, size: tuple[int, int] = (16, 16)) -> None:
        self.root, self.store, self.size = root, store, size
        depth = np.linspace(0, 65535, size[0] * size[1]).reshape(size).astype(np.uint16)
        normals = np.full((*size, 3), (127, 127, 255), dtype=np.uint8)
        self.shared = {
            **{
                f"image_{light}.png": write_png(
                    store / f"image_{light}.png", np.full((*size, 3), 10 * light, dtype=np.uint8)
                )
                for light in range(6)
            },
            "depth.png": write_png(store / "depth.png", depth),
            "normals.png": write_png(store / "normals.png", normals),
        }
        self.empty = write_png(store / "empty.png", mask_array(False, size))
        self.marked = write_png(store / "marked.png", mask_array(True, size))
        self.shared["info_depth.yaml"] = store / "info.yaml"
        self.shared["info_depth.yaml"].write_text("normalization: {min: 0.4, max: 0.6}\n")
        self.shared["pose.txt"] = store / "pose.txt"
        pose = np.eye(4)
        pose[2, 3] = 1.5
        np.savetxt(self.shared["pose.txt"], pose)
        self.metadata, self.count = {}, 0
        for anomalous in (0, 1):
            self.metadata[anomalous] = store / f"metadata_{anomalous}.yaml"
            self.metadata[anomalous].write_text(yaml.safe_dump({"anomalous": anomalous}))

    def add(self, category: str, split: str, number: str, kinds: tuple[str, ...] = ()) -> None:
        data = self.root / category / split / "data"
        data.mkdir(parents=True, exist_ok=True)
        items = self.shared | {"metadata.yaml": self.metadata[int(bool(kinds))]}
        items["mask.png"] = self.marked if kinds else self.empty
        for kind in ("bumps", "dents", "colors", "normals"):
            items[f"{kind}_mask.png"] = self.marked if kind in kinds else self.empty
        for item, source in items.items():
            if item == "image_4.png":  # no two samples are one
                self.count += 1
                image = np.full((*self.size, 3), 40, dtype=np.uint8)
                image[0, 0] = [self.count % 256, self.count // 256, 0]
                write_png(data / f"{number}_{item}", image)
            else:
                os.link(source, data / f"{number}_{item}")

    def add_full(self, train: int = 1000, validation: int = 100) -> None:
        kinds = [("bumps",), ("dents",), ("colors",), ("normals",), ("bumps", "colors")]
        for category, (good, bad) in EYECANDIES.items():
            for number in range(train):
                self.add(category, "train", f"{number:03d}")
            for number in range(validation):
                self.add(category, "val", f"{number:03d}")
            for number in range(good + bad):
                defect = kinds[number % 5] if number < bad else ()
                self.add(category, "test_public", f"{number:02d}", defect)
