"""Time of the pixel metrics beside scikit-learn's ROC: python benchmarks/bench_metrics.py."""

import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from iumad.evaluation.metrics import aupro, image_scores, pixel_auroc

SIDE = 224
REPEATS = 3


def smooth_maps_and_masks(n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with blobs; two thirds of the images have defects of about 2 % of their pixels."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(n_images, SIDE, SIDE)).astype(np.float32)
    blobs = ndimage.gaussian_filter(noise, sigma=(0, 6, 6))
    masks = blobs > 2 * blobs.std()
    masks[: n_images // 3] = False
    return noise + masks, masks


def scikit_learn(maps: np.ndarray, masks: np.ndarray) -> float:
    return roc_auc_score(masks.ravel(), maps.ravel())


def pooled_scores(maps: np.ndarray, _: np.ndarray) -> np.ndarray:
    return image_scores(maps)


def seconds(call: Callable, *arguments: np.ndarray) -> float:
    """Best of a few repeats."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    calls = (aupro, pixel_auroc, scikit_learn, pooled_scores)
    print("pixels".rjust(10), *(call.__name__.rjust(14) for call in calls))
    for n_images in (10, 40, 120):
        maps, masks = smooth_maps_and_masks(n_images)
        times = [f"{seconds(call, maps, masks):12.3f} s" for call in calls]
        print(f"{maps.size:10,}", *times)


if __name__ == "__main__":
    main()
