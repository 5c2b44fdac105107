"""Stores of cached inputs: prepared images and features, read from disk as training asks for them.

Features are those of the frozen backbone, or for BTF's bank (Horwitz and Hoshen, CVPR workshops 2023) those of the
surface itself: FPFH (Rusu et al., ICRA 2009) are histograms of angles between the normals of a point and its
neighbours, 33 numbers a point that do not change when the object is turned. Open3D computes them; it is an
optional extra.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor

from iumad.config.schema import RunConfig
from iumad.data.depth import valid_mask
from iumad.data.prepare import Preparation, Prepared, Resized, joint_range, resize, scale
from iumad.data.sample import Dataset
from iumad.errors import ConfigError, DataError
from iumad.features.backbone import Backbone, one_thread
from iumad.machine import cache_folder, remove_stale, replacing

TOGETHER = 32  # images that a card encodes at once
LOADED_BYTES = 1 << 30  # of inputs that may stay in the machine's memory
PREPARE_VERSION = "3"  # part of the key of prepared entries: raise when preparation changes


@dataclass(frozen=True)
class Batch:
    """What a detector sees of a few samples.

    Attributes
    ----------
    features : modality -> float32, b x C x g x g
    images : modality -> float32, b x 3 x size x size; [0, 1] is the range of the training images
    category : int64, b; index in the data set's order of categories
    """

    features: dict[str, Float[Tensor, "b c g g"]]
    images: dict[str, Float[Tensor, "b 3 size size"]]
    category: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(
            self,
            features={k: v.to(device, non_blocking=True) for k, v in self.features.items()},
            images={k: v.to(device, non_blocking=True) for k, v in self.images.items()},
            category=self.category.to(device, non_blocking=True),
        )

    def only(self, modalities: Sequence[str]) -> "Batch":
        """The same batch with some of its modalities."""
        features = {name: self.features[name] for name in modalities}
        return replace(
            self, features=features, images={name: self.images[name] for name in modalities}
        )

    def rows(self, chosen: Shaped[Tensor, " b"]) -> "Batch":
        """These samples of the batch, chosen by a mask or by their places."""
        return replace(
            self,
            features={k: v[chosen] for k, v in self.features.items()},
            images={k: v[chosen] for k, v in self.images.items()},
            category=self.category[chosen],
        )

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True)
class _Loaded:
    """Inputs of some samples on one device; `rows` tells which is whose."""

    rows: dict[str, int]
    features: dict[str, Float[Tensor, "n c g g"]]
    images: dict[str, Shaped[Tensor, "n size size 3"]]
    category: Int[Tensor, " n"]

    def batch(self, sample_ids: Sequence[str]) -> Batch:
        rows = torch.tensor([self.rows[sample_id] for sample_id in sample_ids])
        rows = rows.to(self.category.device, non_blocking=True)
        return Batch(
            {modality: x[rows] for modality, x in self.features.items()},
            {modality: _as_images(x[rows]) for modality, x in self.images.items()},
            self.category[rows],
        )


class FeatureStore:
    """Prepared images and features of one data set under one configuration.

    Parameters
    ----------
    dataset : Dataset
        Where samples come from.
    run : RunConfig
        Its `data`, `features` and `modality` sections decide what is computed.
    cache : Path, optional
        Cache folder, shared by all data sets and configurations.
    device : torch.device, optional
        Where the backbone runs.
    preparation : Preparation, optional
        How samples become inputs, where it is known already: perturbed images are prepared as the clean ones.
    backbone : Backbone, optional
        On the device; the run's, where there is one already.
    """

    def __init__(
        self,
        dataset: Dataset,
        run: RunConfig,
        cache: Path | None = None,
        device: torch.device | None = None,
        preparation: Preparation | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        self.dataset = dataset
        self.modalities = run.modalities
        self.cache = cache or cache_folder()
        self.device = device or torch.device("cpu")
        self.backbone = backbone or Backbone(run.features).to(self.device)
        # in a batch, the last bits depend on what else is in it: on a CPU, where it is no faster, one at a time
        self.together = TOGETHER if self.device.type == "cuda" else 1
        self._data = run.data
        self._preparation = preparation
        self._run = run
        self._kinds = ("rgb", *(name for name in run.modalities if name != "rgb"))
        self._category = {name: i for i, name in enumerate(dataset.categories)}
        self._of_sample = dict(
            zip(dataset.index["sample_id"], dataset.index["category"], strict=True)
        )
        self._loaded: _Loaded | None = None

    def fill(
        self, sample_ids: Sequence[str], advance: Callable[[int], object] | None = None
    ) -> None:
        """Compute what the cache lacks, sample by sample in as many threads as torch may use.

        Memory stays bounded. After an interruption, what is in the cache is not computed again. A card encodes
        `TOGETHER` images at once, which changes features by up to 5e-7 of the largest (measured on a CPU).

        Parameters
        ----------
        sample_ids : sequence of str
        advance : callable, optional
            Called with the number of samples just finished (a progress bar).
        """
        self.preparation()
        if self.together == 1:
            in_threads(self._complete, sample_ids, advance)
            return
        for start in range(0, len(sample_ids), self.together):
            part = sample_ids[start : start + self.together]
            in_threads(self.resized, part)
            for modality in self.modalities:
                self._features([self.prepared(each).images[modality] for each in part])
            if advance:
                advance(len(part))

    def preparation(self, advance: Callable[[int], object] | None = None) -> Preparation:
        """How samples become inputs: what the `data` section asks for, measured where it says so.

        Ranges are measured once, on the training images of the base step, and hold for all that follow.

        Parameters
        ----------
        advance : callable, optional
            Called with the number of images just measured.
        """
        if self._preparation is None:
            base = self._run.steps_of(self.dataset.categories)[0]
            ids = self.dataset.ids("train", base)
            names = self.resized(ids[0]).ranges if ids else {}
            scaling: dict = {name: self._data.scaling_of(name) for name in names}
            measured = [name for name, choice in scaling.items() if choice == "measured"]
            if measured:
                in_threads(self.resized, ids, advance)
                ranges = [self.resized(sample_id).ranges for sample_id in ids]
                scaling |= {name: joint_range(each[name] for each in ranges) for name in measured}
            self._preparation = Preparation(
                reader=self.dataset.reader,
                image_size=self._data.image_size,
                depth_encoding=self._data.depth_encoding,
                scaling=scaling,
            )
        return self._preparation

    def load(self, sample_ids: Sequence[str], device: torch.device | None = None) -> None:
        """Keep the inputs of these samples on a device, instead of those kept before, if they fit.

        Nothing but the speed of `batch` changes. They may take `LOADED_BYTES` of the machine's memory, or half of
        what is free of a card's, or of this process's share of it.

        Parameters
        ----------
        sample_ids : sequence of str
        device : torch.device, optional
            Default: the CPU.
        """
        self._loaded = None
        device = device or torch.device("cpu")
        room = _room_on(device) if device.type == "cuda" else LOADED_BYTES
        rows = {sample_id: row for row, sample_id in enumerate(dict.fromkeys(sample_ids))}
        kept: list[tuple[Tensor, Tensor]] = []  # images and features of each modality
        for sample_id, row in rows.items():
            prepared = self.prepared(sample_id)
            arrays = [prepared.images[modality] for modality in self.modalities]
            inputs = [(torch.from_numpy(x), self._features([x])[0]) for x in arrays]
            if row == 0:
                if len(rows) * sum(x.nbytes for pair in inputs for x in pair) > room:
                    return
                kept = [
                    (
                        torch.empty(len(rows), *image.shape, dtype=image.dtype, device=device),
                        torch.empty(len(rows), *feature.shape, dtype=feature.dtype, device=device),
                    )
                    for image, feature in inputs
                ]
            for (images, features), (image, feature) in zip(kept, inputs, strict=True):
                images[row], features[row] = image, feature
        self._loaded = _Loaded(
            rows,
            {m: features for m, (_, features) in zip(self.modalities, kept, strict=True)},
            {m: images for m, (images, _) in zip(self.modalities, kept, strict=True)},
            torch.tensor(self._categories(list(rows)), device=device),
        )

    def batch(self, sample_ids: Sequence[str], device: torch.device | None = None) -> Batch:
        """Inputs of these samples, in order; computed first where the cache lacks them.

        Parameters
        ----------
        sample_ids : sequence of str
        device : torch.device, optional
            Where they shall be; default: the CPU.
        """
        if self._loaded is not None and self._loaded.rows.keys() >= set(sample_ids):
            batch = self._loaded.batch(sample_ids)
        else:
            prepared = [self.prepared(sample_id) for sample_id in sample_ids]
            batch = self.assemble(prepared, self._categories(sample_ids))
        return batch.to(device or torch.device("cpu"))

    def _categories(self, sample_ids: Sequence[str]) -> list[int]:
        return [self._category[self._of_sample[sample_id]] for sample_id in sample_ids]

    def assemble(self, prepared: Sequence[Prepared], categories: Sequence[int]) -> Batch:
        """Inputs of prepared samples, of this data set or from anywhere else, with their category indices."""
        features, images = {}, {}
        for modality in self.modalities:
            arrays = [each.images[modality] for each in prepared]
            features[modality] = self._features(arrays)
            images[modality] = as_tensor(arrays)
        return Batch(features, images, torch.tensor(categories))

    def masks(self, sample_ids: Sequence[str]) -> Bool[np.ndarray, "n size size"]:
        """Ground truth of these samples at the model's image size.

        Raises
        ------
        DataError
            Of a sample it is not known which pixels are defective (`masked` of the index).
        """
        masks = [self.resized(sample_id).mask for sample_id in sample_ids]
        for sample_id, mask in zip(sample_ids, masks, strict=True):
            if mask is None:
                raise DataError(
                    f"{sample_id}: has no mask, so there is no ground truth of its pixels"
                )
        size = self._data.image_size
        known = [mask for mask in masks if mask is not None]
        return np.stack(known) if known else np.zeros((0, size, size), dtype=bool)

    def prepared(self, sample_id: str) -> Prepared:
        """One sample as the model sees it."""
        return scale(self.resized(sample_id), self.preparation())

    def resized(self, sample_id: str) -> Resized:
        """One sample at the model's size, values as measured, from the cache or made now."""
        size, encoding = self._data.image_size, self._data.depth_encoding
        how = f"{PREPARE_VERSION}:{size}:{encoding}:{'+'.join(self._kinds)}"
        path = self._path(
            "prepared", _digest(f"{how}:{self.dataset.fingerprint(sample_id)}"), ".npz"
        )
        entry = _read(path)
        if entry is None:
            made = resize(self.dataset.load(sample_id), size, encoding, self._kinds)
            arrays = {f"image.{name}": image for name, image in made.images.items()}
            arrays |= {f"range.{name}": np.array(limits) for name, limits in made.ranges.items()}
            _write(path, arrays | ({} if made.mask is None else {"mask": made.mask}))
            return made
        images = {name: entry[f"image.{name}"] for name in self._kinds}
        limits = {name: entry.get(f"range.{name}") for name in self._kinds}
        ranges = {k: (float(v[0]), float(v[1])) for k, v in limits.items() if v is not None}
        return Resized(images, entry.get("mask"), ranges)

    def _complete(self, sample_id: str) -> None:
        prepared = self.prepared(sample_id)
        for modality in self.modalities:
            self._features([prepared.images[modality]])

    def _features(self, arrays: Sequence[np.ndarray]) -> Float[Tensor, "b c g g"]:
        keys = [_digest(self.backbone.key, array) for array in arrays]
        paths = [self._path("features", key, ".npz") for key in keys]
        entries = [_read(path) for path in paths]
        missing = [i for i, entry in enumerate(entries) if entry is None]
        if missing:
            images = as_tensor([arrays[i] for i in missing]).to(self.device)
            with one_thread():
                made = [self.backbone(part).cpu().numpy() for part in images.split(self.together)]
            for i, feature in zip(missing, np.concatenate(made), strict=True):
                entries[i] = entry = {"feature": feature}
                _write(paths[i], entry)
        return torch.from_numpy(
            np.stack([entry["feature"] for entry in entries if entry is not None])
        )

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.cache / kind / key[:2] / f"{key}{suffix}"


def in_threads(
    work: Callable[[str], object],
    sample_ids: Sequence[str],
    advance: Callable[[int], object] | None = None,
) -> None:
    """Do the same for many samples in as many threads as torch may use; each then computes with one.

    After the first error, or Ctrl-C, what was not begun is dropped.
    """
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        with one_thread():
            for _ in pool.map(work, sample_ids):
                if advance:
                    advance(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _room_on(card: torch.device) -> float:
    """Bytes that inputs may take there: processes that share a card (`iumad run -j`) have a part of it each."""
    free, total = torch.cuda.mem_get_info(card)
    return min(free, torch.cuda.get_per_process_memory_fraction(card) * total) / 2


ENTRIES = {"prepared": "*/*.npz", "features": "*/*.npz", "fpfh": "*.npy"}
"""Kind -> its files in its folder of the cache."""


def cache_size(cache: Path) -> dict[str, tuple[int, int]]:
    """Entries and bytes of each kind in the cache folder."""
    sizes = {}
    for kind, entries in ENTRIES.items():
        files = [path.stat().st_size for path in (cache / kind).glob(entries)]
        sizes[kind] = (len(files), sum(files))
    return sizes


def prune_cache(cache: Path, max_bytes: int) -> int:
    """Delete the entries read longest ago until at most `max_bytes` remain; returns the bytes freed."""
    files = [
        (path.stat(), path)
        for kind, entries in ENTRIES.items()
        for path in (cache / kind).glob(entries)
    ]
    for kind in ENTRIES:
        for folder in (cache / kind).glob("**"):
            remove_stale(folder)
    files.sort(key=lambda item: max(item[0].st_atime_ns, item[0].st_mtime_ns))
    excess = sum(stat.st_size for stat, _ in files) - max_bytes
    freed = 0
    for stat, path in files:
        if freed >= excess:
            break
        path.unlink(missing_ok=True)
        freed += stat.st_size
    return freed


def _digest(text: str, array: np.ndarray | None = None) -> str:
    digest = hashlib.sha256(text.encode())
    if array is not None:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def as_tensor(arrays: Sequence[np.ndarray]) -> Float[Tensor, "b 3 h w"]:
    """Images of one size, h x w x 3, as a batch; bytes become fractions of 255."""
    return _as_images(torch.from_numpy(np.stack(arrays)))


def _as_images(stacked: Shaped[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    images = stacked.permute(0, 3, 1, 2)
    return images.float() / 255 if images.dtype == torch.uint8 else images.contiguous()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The entry, or None where there is none or it cannot be read (it is then made again)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            return dict(entry)
    except FileNotFoundError:
        return None
    except Exception:  # numpy and zipfile raise many kinds for damaged files
        path.unlink(missing_ok=True)
        return None


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


NORMAL_RADIUS, NORMAL_POINTS = 0.1, 30  # metres, and how many points at most: the authors' values
FEATURE_RADIUS, FEATURE_POINTS = 0.25, 100
VERSION = "1"  # part of the key of cached maps: raise when they change


class SurfaceStore(FeatureStore):
    """A store whose depth features are FPFH of the point cloud, on the backbone's grid."""

    def batch(self, sample_ids: Sequence[str], device: torch.device | None = None) -> Batch:
        """Inputs of these samples, in order; see `FeatureStore.batch`."""
        prepared = [self.prepared(sample_id) for sample_id in sample_ids]
        batch = super().assemble(prepared, self._categories(sample_ids))
        if "depth" in self.modalities:
            maps = torch.from_numpy(np.stack([self._fpfh(sample_id) for sample_id in sample_ids]))
            batch = replace(batch, features=batch.features | {"depth": maps})
        return batch.to(device or torch.device("cpu"))

    def assemble(self, prepared: Sequence[Prepared], categories: Sequence[int]) -> Batch:  # noqa: ARG002
        """Refuse: prepared samples have no point cloud."""
        raise ConfigError(
            "model.depth_features fpfh needs samples of the run's data set, because it reads their point clouds"
        )

    def _complete(self, sample_id: str) -> None:
        super()._complete(sample_id)
        if "depth" in self.modalities:
            self._fpfh(sample_id)

    def _fpfh(self, sample_id: str) -> Float32[np.ndarray, "33 g g"]:
        text = f"fpfh {VERSION} {self.backbone.grid} {self.dataset.fingerprint(sample_id)}"
        path = self.cache / "fpfh" / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
        try:
            return np.load(path)
        except (OSError, EOFError, ValueError):  # not there, or damaged: it is made again
            xyz = self.dataset.load(sample_id).xyz
        if xyz is None:
            raise DataError(f"{sample_id}: FPFH need a point cloud, and this sample has none")
        found = fpfh_map(xyz, self.backbone.grid)
        with replacing(path) as file:
            np.save(file, found)
        return found


def fpfh_map(xyz: Float32[np.ndarray, "h w 3"], grid: int) -> Float32[np.ndarray, "33 g g"]:
    """FPFH of all measured points, averaged over each cell of a grid; 0 in cells without a point.

    Normals point to the camera, so that they do not depend on the order of points.

    Raises
    ------
    ConfigError
        Open3D is not installed.
    """
    open3d, valid = import_open3d(), valid_mask(xyz)
    points = open3d.utility.Vector3dVector(xyz[valid].astype(np.float64))
    cloud = open3d.geometry.PointCloud(points)
    search = open3d.geometry.KDTreeSearchParamHybrid
    cloud.estimate_normals(search(NORMAL_RADIUS, NORMAL_POINTS))
    cloud.orient_normals_towards_camera_location(np.zeros(3))
    features = open3d.pipelines.registration.compute_fpfh_feature(
        cloud, search(FEATURE_RADIUS, FEATURE_POINTS)
    )
    return cell_means(np.asarray(features.data).T, valid, grid)


def cell_means(
    values: Float[np.ndarray, "n c"], valid: Bool[np.ndarray, "h w"], grid: int
) -> Float32[np.ndarray, "c g g"]:
    """Mean over each cell of a grid of the values of its valid pixels, given in row-major order."""
    rows, columns = np.nonzero(valid)
    height, width = valid.shape
    cell = (rows * grid // height) * grid + columns * grid // width
    count = np.bincount(cell, minlength=grid**2)
    sums = np.zeros((grid**2, values.shape[1]))
    np.add.at(sums, cell, values)
    means = sums / np.maximum(count, 1)[:, None]
    return means.T.reshape(-1, grid, grid).astype(np.float32)


def import_open3d() -> ModuleType:
    """Open3D, or an error that says how to get it."""
    try:
        import open3d
    except ImportError as error:
        raise ConfigError(
            f'model.depth_features fpfh needs Open3D: pip install "iumad[fpfh]" (import failed: {error})'
        ) from error
    return open3d
