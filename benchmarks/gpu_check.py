"""What a CUDA machine does with the full-size model: python benchmarks/gpu_check.py [--out gpu_check.json].

Compares the CUDA scan with the loop in float64, trains a short while on random images (cached features, as in
training), measures training steps, inference with and without the backbone (frame rate at batch 1, as the paper's
21.4 frames a second, and images a second in batches) and peak memory, in float32 and bfloat16. Writes one JSON.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_training import Case, full_size

from iumad.errors import ConfigError
from iumad.features.backbone import Backbone
from iumad.models.scan import selective_scan

BACKWARD_TOLERANCE = 1e-4  # of the largest entry: float32 sums over batch and length


def scan_errors(device: torch.device) -> dict[str, float]:
    """Largest error of the backend that `auto` takes, relative to the largest entry, of output and gradients."""
    torch.manual_seed(0)
    rates = -torch.arange(1.0, 17).repeat(2048, 1)
    b, c = torch.randn(2, 4, 16, 49), torch.randn(2, 4, 16, 49)
    plain = [torch.randn(2, 2048, 49), torch.randn(2, 2048, 49), rates, b, c, torch.randn(2048)]
    results = []
    for dtype, backend in ((torch.float32, "auto"), (torch.float64, "reference")):
        inputs = [x.to(device, dtype, copy=True).requires_grad_() for x in plain]
        out = selective_scan(*inputs, delta_softplus=True, backend=backend)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    names = ("out", "u", "delta", "A", "B", "C", "D")
    return {
        name: float((fast.double() - exact).abs().max() / exact.abs().max())
        for name, fast, exact in zip(names, *results, strict=True)
    }


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median after warming up, each call to its end on the device."""
    times = []
    for repeat in range(repeats + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if repeat >= 5:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(precision: str, repeats: int, steps: int, device: torch.device) -> dict[str, Any]:
    """A short training, and speeds and memory of one precision."""
    run = full_size("ib-iumad", [f"training.precision={precision}"])
    torch.cuda.reset_peak_memory_stats()
    case = Case(run, run.training.batch_size, device)
    case.detector.train()
    before = float(case.detector.losses(case.batch)["fusion"].detach())
    training = seconds(case.train, repeats)
    for _ in range(steps):
        case.train()
    case.detector.train()
    after = float(case.detector.losses(case.batch)["fusion"].detach())
    memory_training = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    backbone = Backbone(run.features.model_copy(update={"weights": "random"})).to(device)
    single = Case(run, 1, device)

    def frame() -> None:
        for images in single.batch.images.values():
            backbone(images)
        single.infer()

    per_frame = seconds(frame, repeats)
    per_batch = seconds(case.infer, repeats)
    size = case.size
    return {
        "batch": size,
        "loss_before": before,
        "loss_after": after,
        "training_step_s": training,
        "training_images_per_s": size / training,
        "inference_images_per_s": size / per_batch,
        "frames_per_s": 1 / per_frame,
        "peak_memory_training_mb": memory_training / 1e6,
        "peak_memory_inference_mb": torch.cuda.max_memory_allocated() / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50, help="of the short training")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise ConfigError("gpu_check needs a CUDA device, and torch finds none here")
    device = torch.device("cuda")
    errors = scan_errors(device)
    report = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "mamba_ssm": importlib.util.find_spec("mamba_ssm") is not None,
        "scan_errors": errors,
        "scan_agrees": max(errors.values()) < BACKWARD_TOLERANCE,
    }
    for precision in ("float32", "bfloat16"):
        report[precision] = measure(precision, arguments.repeats, arguments.steps, device)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
