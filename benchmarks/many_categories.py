"""More than ten categories in MVTec AD's layout, sweets and real ones, for `params/real_many.yaml`.

    iumad data export SWEETS --n-train 20 --n-test-good 8 --n-test-defect 12
    python benchmarks/many_categories.py SWEETS $IUMAD_DATA/real_rgb $IUMAD_DATA/real_many

Links to files, evenly picked: 20 training images, 8 good and about 12 defective test images of each category.
"""

import argparse
from pathlib import Path

TRAIN, GOOD, DEFECTIVE = 20, 8, 12


def picked(files: list[Path], n: int) -> list[Path]:
    """At most n of the files, evenly spaced."""
    files = sorted(files)
    return files if len(files) <= n else [files[i * len(files) // n] for i in range(n)]


def link(image: Path, mask: Path | None, category: Path, split: str, kind: str) -> None:
    """Put an image and its mask into a category's folder."""
    links = {category / split / kind / image.name: image}
    if mask is not None:
        links[category / "ground_truth" / kind / f"{image.stem}_mask.png"] = mask
    for place, target in links.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve())


def add_category(source: Path, out: Path) -> None:
    """Link a category in the layout of MVTec AD, or the colour images of one in that of MVTec 3D-AD."""
    inner = "rgb" if (source / "train/good/rgb").is_dir() else "."
    for image in picked([*(source / "train/good" / inner).glob("*.png")], TRAIN):
        link(image, None, out, "train", "good")
    kinds = [each for each in sorted((source / "test").iterdir()) if "nomask" not in each.name]
    for kind in kinds:
        n = GOOD if kind.name == "good" else max(1, DEFECTIVE // (len(kinds) - 1))
        for image in picked([*(kind / inner).glob("*.png")], n):
            mask = source / "ground_truth" / kind.name / f"{image.stem}_mask.png"
            mask = kind / "gt" / image.name if inner == "rgb" else mask
            link(image, None if kind.name == "good" else mask, out, "test", kind.name)


def main() -> None:
    """Link all categories of both folders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="+", help="folders of categories")
    parser.add_argument("out", type=Path, help="new folder")
    arguments = parser.parse_args()
    for source in arguments.sources:
        for category in sorted(each for each in source.iterdir() if each.is_dir()):
            known = (arguments.out / category.name).exists()
            add_category(category, arguments.out / (category.name + known * "_photo"))


if __name__ == "__main__":
    main()
