"""Images a second from a data set to cached features, and the memory of a long stream.

    python benchmarks/bench_features.py [--samples 48] [--size 128] [--threads 1 2] [--stream 4000]

First table: MiniCandies, drawn when asked for, and the same samples as files in MVTec 3D-AD's layout
(PNG, float32 TIFF). Each way of getting to the features is named with images a second by the clock,
processor milliseconds an image (all threads), and the ratio to the reference: the plain loop that
loads, prepares and computes one sample after the other with one thread and keeps nothing. An image
is one sample with both modalities, so the backbone runs twice. Filling works on as many samples at
a time as torch has threads. The load of the machine is printed, because other programs change the
clock's numbers more than the processor's.

Second table: peak memory while a set of `--stream` samples passes through an empty cache. They are
random images of 64 pixels made in memory, each of them different, with random depth; only the number
matters here.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from iumad.config.schema import RunConfig, StudyConfig
from iumad.data import Dataset, Sample, open_dataset
from iumad.data.prepare import prepare
from iumad.data.public import export_mvtec3d
from iumad.data.sample import build_index
from iumad.features.backbone import one_thread
from iumad.features.cache import FeatureStore, prune_cache

REFERENCE = "plain loop, 1 thread (reference)"
STREAM_SIZE = 64


class RandomImages:
    """`number` different samples, made when asked for."""

    name, categories, modalities = "random", ("noise",), ("rgb", "depth")

    def __init__(self, number: int) -> None:
        row = {"category": "noise", "split": "train", "defect": "good", "label": 0}
        row |= {"geometric": None, "height": STREAM_SIZE, "width": STREAM_SIZE}
        row |= {"rgb": "", "xyz": "", "mask": ""}
        self.index = build_index(
            [row | {"sample_id": f"noise/train/good/{i:06d}"} for i in range(number)], ("noise",)
        )

    def load(self, sample_id: str) -> Sample:
        rng = np.random.default_rng(int(sample_id[-6:]))
        shape = (STREAM_SIZE, STREAM_SIZE)
        rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        xyz = rng.uniform(0.4, 0.5, (*shape, 3)).astype(np.float32)
        mask = np.zeros(shape, dtype=bool)
        return Sample(sample_id, "noise", "train", "good", rgb, xyz, mask, None, None)

    def fingerprint(self, sample_id: str) -> str:
        return sample_id


def both_modalities(data: dict, grid: int) -> RunConfig:
    content = {"data": data, "features": {"grid": grid}, "modalities": ["rgb+depth"]}
    settings = {"settings": ["1-0"], "methods": {"bank": {}}}
    (run,) = StudyConfig.model_validate(content | settings).runs()
    return run


def timed(work: Callable[[], object], samples: int) -> tuple[float, float]:
    """Images a second by the clock, processor milliseconds an image."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - clock, time.process_time() - processor
    return samples / seconds, 1e3 * cpu / samples


def compare(dataset: Dataset, run: RunConfig, ids: list[str], cache: Path) -> None:
    store = FeatureStore(dataset, run, cache)
    prepared = [prepare(dataset.load(sample_id), run.data) for sample_id in ids]

    def tensors(each) -> list[torch.Tensor]:
        rgb = torch.from_numpy(each.rgb).permute(2, 0, 1)[None].float() / 255
        return [rgb, torch.from_numpy(each.depth).permute(2, 0, 1)[None].contiguous()]

    def backbone_alone() -> None:
        for each in prepared:
            for image in tensors(each):
                store.backbone(image)

    def plain_loop() -> None:
        for sample_id in ids:
            for image in tensors(prepare(dataset.load(sample_id), run.data)):
                store.backbone(image)

    def one_after_the_other() -> None:
        for sample_id in ids:
            store.batch([sample_id])

    def load_and_prepare() -> None:
        for sample_id in ids:
            prepare(dataset.load(sample_id), run.data)

    def batches() -> None:
        for start in range(0, len(ids), 8):
            store.batch(ids[start : start + 8])

    def alone(work: Callable[[], None]) -> Callable[[], None]:
        def with_one_thread() -> None:
            with one_thread():
                work()

        return with_one_thread

    alone(backbone_alone)()  # warms up
    jobs: dict[str, Callable[[], object]] = {
        REFERENCE: alone(plain_loop),
        "  of it: load and prepare": alone(load_and_prepare),
        "  of it: backbone": alone(backbone_alone),
        "cold cache, one after the other": one_after_the_other,
        "cold cache, fill": lambda: store.fill(ids),
        "warm cache, fill": lambda: store.fill(ids),
        "warm cache, batches of 8": batches,
    }
    if torch.get_num_threads() > 1:
        jobs["plain loop, all threads an image"] = plain_loop
    reference = None
    print(f"   {'way':34}{'images/s':>10}{'CPU ms/image':>14}{'ratio':>8}{'(CPU)':>8}")
    for name, job in jobs.items():
        if name.startswith("cold"):
            prune_cache(cache, 0)
        rate, cpu = timed(job, len(ids))
        reference = reference or (rate, cpu)
        ratios = f"{rate / reference[0]:8.2f}{reference[1] / cpu:8.2f}"
        print(f"   {name:34}{rate:10.1f}{cpu:14.1f}{ratios}", flush=True)
    prune_cache(cache, 0)


def stream(number: int, cache: Path) -> None:
    """Peak memory of this process at tenths of a long stream."""
    run = both_modalities({"name": "minicandies", "image_size": STREAM_SIZE}, grid=8)
    before = peak_memory()
    dataset = RandomImages(number)
    store = FeatureStore(dataset, run, cache)
    ids = dataset.index["sample_id"].tolist()
    print(f"\n{number} samples of {STREAM_SIZE} pixels, empty cache")
    print(f"   {'samples':>8}{'peak memory, MB':>17}{'images/s so far':>17}")
    print(f"   {'start':>8}{before:17.0f}{'':>17}")
    done, clock = 0, time.perf_counter()
    marks = [number * tenth // 10 for tenth in (1, 2, 4, 6, 8, 10)]

    def note(count: int) -> None:
        nonlocal done
        done += count
        while marks and done >= marks[0]:
            marks.pop(0)
            rate = done / (time.perf_counter() - clock)
            print(f"   {done:8d}{peak_memory():17.0f}{rate:17.1f}", flush=True)

    store.fill(ids, note)


def peak_memory() -> float:
    """Largest resident memory of this process so far in MB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stream", type=int, default=4000, help="0: leave it out")
    arguments = parser.parse_args()
    candies = {"name": "minicandies", "image_size": arguments.size}
    candies |= {"n_train": max(1, arguments.samples // 10), "n_validation": 1}
    candies |= {"n_test_good": 1, "n_test_defect": 1}
    run = both_modalities(candies, grid=16)
    drawn = open_dataset(run.data)
    with tempfile.TemporaryDirectory(prefix="bench-features-") as folder:
        cache = Path(folder) / "cache"
        root = export_mvtec3d(drawn, Path(folder) / "candies")
        files = both_modalities(
            {"name": "mvtec3d", "root": str(root), "image_size": arguments.size}, grid=16
        )
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for name, config in (("drawn", run), ("from files", files)):
                dataset = open_dataset(config.data)
                ids = dataset.index["sample_id"].tolist()[: arguments.samples]
                load = os.getloadavg()[0]
                print(
                    f"\nMiniCandies {name}, {len(ids)} samples of {arguments.size} pixels, "
                    f"{threads} torch threads, {os.cpu_count()} cores, load {load:.1f}"
                )
                compare(dataset, config, ids, cache)
        if arguments.stream:
            torch.set_num_threads(arguments.threads[-1])
            stream(arguments.stream, cache)


if __name__ == "__main__":
    main()
