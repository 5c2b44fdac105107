"""MiniCandies: ten categories of procedural sweets and pastry with depth, defects and exact masks.

The embedded default of the study, since MVTec 3D-AD and Eyecandies may not be shipped. Every
sample is drawn when it is loaded, and depends on the seed and on its own id only, never on how many
samples there are. Equal seeds give equal bytes as long as NumPy, SciPy and the processor's
arithmetic stay the same; the fingerprint therefore holds the two versions.
"""

import difflib
import hashlib
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import scipy
from jaxtyping import Float

from iumad.config.sections import MiniCandiesConfig
from iumad.data.minicandies.defects import DRAW
from iumad.data.minicandies.objects import SHAPES, TABLES
from iumad.data.minicandies.render import draw_light, photograph, point_cloud
from iumad.data.minicandies.shapes import Grid
from iumad.data.sample import GOOD, SPLITS, Dataset, Sample, Split, build_index
from iumad.errors import ConfigError, DataError

CATEGORIES: tuple[str, ...] = tuple(SHAPES)
DEFECTS: dict[str, bool] = {name: geometric for name, (_, geometric) in DRAW.items()}
TURN = {"chocolate": 8.0, "pretzel": 8.0, "madeleine": 20.0, "waffle": 6.0}
"""Standard deviation of the rotation in degrees, for objects that lie in order."""
ANY = 360.0  # and for all others: so wide that every angle is as likely


class MiniCandies(Dataset):
    """The generator as a data set.

    Parameters
    ----------
    config
        Categories, image size, counts, difficulty and seed. `difficulty` makes defects smaller and
        fainter and good objects more different from each other.

    Raises
    ------
    ConfigError
        For a category that does not exist.
    """

    name = "minicandies"
    modalities = ("rgb", "depth")

    def __init__(self, config: MiniCandiesConfig) -> None:
        self.config = config
        self.categories = CATEGORIES if config.categories is None else tuple(config.categories)
        for category in self.categories:
            if category not in CATEGORIES:
                near = difflib.get_close_matches(category, CATEGORIES, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(
                    f"categories: MiniCandies has no {category!r}{hint}; "
                    f"it has {', '.join(CATEGORIES)}"
                )
        self._names = {
            f"{category}/{split}/{defect}/{number:03d}": (category, split, defect)
            for category in self.categories
            for split, defect, number in self._plan()
        }
        self.index = build_index(self._rows(), self.categories)

    def _plan(self) -> list[tuple[Split, str, int]]:
        counts: dict[Split, int] = {
            "train": self.config.n_train,
            "validation": self.config.n_validation,
            "test": self.config.n_test_good,
        }
        names: list[tuple[Split, str, int]] = [
            (split, GOOD, number) for split in SPLITS for number in range(counts[split])
        ]
        kinds = tuple(DEFECTS)
        # Defect types take turns, so that they are spread evenly for any number of samples.
        names += [
            ("test", kinds[turn % len(kinds)], turn // len(kinds))
            for turn in range(self.config.n_test_defect)
        ]
        return names

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "sample_id": sample_id,
                "category": category,
                "split": split,
                "defect": defect,
                "label": int(defect != GOOD),
                "geometric": DEFECTS.get(defect),
                "masked": True,
                "height": self.config.image_size,
                "width": self.config.image_size,
            }
            for sample_id, (category, split, defect) in self._names.items()
        ]

    def load(self, sample_id: str) -> Sample:
        """Draw one sample."""
        return self._draw(sample_id, with_defect=True)

    def load_without_defect(self, sample_id: str) -> Sample:
        """Draw the same object under the same light and sensor noise, before it was damaged."""
        return self._draw(sample_id, with_defect=False)

    def fingerprint(self, sample_id: str) -> str:
        """Hash of the id, the generator's source and everything else that the pixels depend on."""
        self._check(sample_id)
        config = self.config
        parts = (sample_id, config.drawn_seed, config.image_size, config.difficulty, source_hash())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _check(self, sample_id: str) -> None:
        if sample_id not in self._names:
            raise DataError(f"MiniCandies with this configuration has no sample {sample_id!r}")

    def _draw(self, sample_id: str, with_defect: bool) -> Sample:
        self._check(sample_id)
        category, split, defect = self._names[sample_id]
        damaged = with_defect and defect != GOOD
        # One stream a purpose: the damage draws nothing that light, table or sensor would draw.
        scene, shape, damage, sensor = (
            np.random.default_rng(stream)
            for stream in np.random.SeedSequence(
                [
                    self.config.drawn_seed,
                    *(zlib.crc32(part.encode()) for part in sample_id.split("/")),
                ]
            ).spawn(4)
        )
        difficulty, size = self.config.difficulty, self.config.image_size
        variation = 0.5 + difficulty

        light = draw_light(scene, variation)
        table_grid = image_grid(size, scene.uniform(-0.15, 0.15, 2), scene.normal(0, 0.05), 1.0)
        # All images of a category show parts of one and the same table top.
        top = np.random.default_rng([self.config.drawn_seed, zlib.crc32(category.encode())])
        table = TABLES[category](table_grid, top)

        grid, scale = draw_pose(category, size, shape, variation)
        surface = SHAPES[category](grid, shape, variation)
        foreground = surface.coverage > 0.5

        mask = np.zeros((size, size), dtype=bool)
        if damaged:
            draw_defect, _ = DRAW[defect]
            surface, mask = draw_defect(
                surface, grid, damage, 1.3 - 0.6 * difficulty, 1.6 - 1.2 * difficulty
            )

        height = scale * surface.height
        cover = surface.coverage[..., None]
        noise = sensor.normal(0, 0.008 + 0.008 * difficulty, (size, size, 3))
        return Sample(
            sample_id=sample_id,
            category=category,
            split=split,
            defect=defect if damaged else GOOD,
            rgb=photograph(
                height,
                table + cover * (surface.albedo - table),
                0.05 + surface.coverage * (surface.gloss - 0.05),
                light,
                noise,
            ),
            xyz=point_cloud(height, foreground, sensor),
            mask=mask,
            geometric=DEFECTS[defect] if damaged else None,
            foreground=foreground,
        )


def draw_pose(
    category: str, size: int, rng: np.random.Generator, variation: float
) -> tuple[Grid, float]:
    """Place the object: its coordinates of all pixels and its scale."""
    scale = 1.07 + 0.03 * variation * float(np.clip(rng.normal(), -2, 2))
    shift = 0.05 * variation * np.clip(rng.normal(size=2), -2, 2)
    turn = np.deg2rad(TURN.get(category, ANY)) * variation * rng.normal()
    return image_grid(size, shift, turn, scale), scale


def image_grid(size: int, shift: Float[np.ndarray, "2"], turn: float, scale: float) -> Grid:
    """Coordinates of the pixels' centres after a shift, a turn (radians) and a scale."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(axis - shift[0], axis - shift[1])
    return Grid(
        x=(np.cos(turn) * x + np.sin(turn) * y) / scale,
        y=(np.cos(turn) * y - np.sin(turn) * x) / scale,
        pixel=2 / size / scale,
    )


@cache
def source_hash() -> str:
    """Hash of the generator's source files and of the libraries whose numerics it uses."""
    folder = Path(__file__).parent
    source = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    source += (folder.parent / "noise.py").read_bytes()
    return hashlib.sha256(source + f"{np.__version__} {scipy.__version__}".encode()).hexdigest()
