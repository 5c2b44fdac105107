"""Training of one step: one explicit loop, resumable within the step to the same bits.

All randomness of an epoch (order, jitter, dropout) comes from a seed derived from run seed, step and epoch, so a
checkpoint written after an epoch needs no generator state: training resumed from it is the training that was
interrupted.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iumad.checkpoint import load_checkpoint, save_checkpoint
from iumad.config import RunConfig
from iumad.errors import IumadError
from iumad.increments import Guard, Memory
from iumad.models.detector import ReconstructionDetector
from iumad.store import FeatureStore

LogRow = dict[str, Any]  # epoch, term, value


class TrainingError(IumadError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class StepPlan:
    """How one step is trained: the base step by `training`, later ones by `increment` where it differs."""

    step: int
    epochs: int
    lr: float
    optimizer: str

    @classmethod
    def of(cls, run: RunConfig, step: int) -> "StepPlan":
        """The plan of step `step` (0 is the base) of a run."""
        if step == 0:
            return cls(step, run.training.epochs, run.training.lr, "adamw")
        return cls(step, run.increment.epochs, run.increment.lr, run.increment.optimizer)


def fit_step(
    detector: ReconstructionDetector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    run: RunConfig,
    step: int,
    memory: Memory,
    partial: Path,
    advance: Callable[[int], object] | None = None,
    save_seconds: float = 60.0,
) -> list[LogRow]:
    """Train `detector` in place on one step's samples.

    Parameters
    ----------
    detector : on its device; for step > 0 the model of the step before
    store, sample_ids : the step's training data, nothing else is read
    run, step : configuration and number of the step
    memory : what is remembered of earlier steps (`iumad.increments.remember`)
    partial : file of the unfinished step; training goes on from it where it exists, it is deleted at the end
    advance : called with the number of samples just trained on (a progress bar)
    save_seconds : an unfinished step is saved after the first epoch that ends this long after the last save

    Returns
    -------
    list of dict
        epoch, term, value: the mean of every loss term over each epoch.

    Raises
    ------
    TrainingError
        A loss is not finite; the text names step, epoch and samples.
    CheckpointError
        `partial` cannot be read or belongs to another run.
    """
    plan, device = StepPlan.of(run, step), next(detector.parameters()).device
    if step == 0:
        fit_statistics(detector, store, sample_ids)
    guard = Guard(detector, run.increment, memory)
    samples = [*sample_ids, *guard.replayed]
    batches_per_epoch = -(-len(samples) // run.training.batch_size)
    optimizer = _optimizer(detector, plan, run.training.weight_decay)
    scheduler = _scheduler(optimizer, run.training.schedule, plan, batches_per_epoch)
    key = {
        "run": run.run_id,
        "step": step,
        "samples": hashlib.sha256("\n".join(samples).encode()).hexdigest(),
    }
    log: list[LogRow] = []
    first_epoch = 0
    if partial.exists():
        saved = load_checkpoint(partial, key)
        detector.load_state_dict(saved["detector"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first_epoch, log = saved["epoch"], saved["log"]
        if advance:
            advance(first_epoch * len(samples))
    last_save = time.monotonic()
    detector.train()
    for epoch in range(first_epoch, plan.epochs):
        seed = epoch_seed(run.seed, step, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        order = [samples[i] for i in torch.randperm(len(samples))]
        sums: dict[str, float] = {}
        for start in range(0, len(order), run.training.batch_size):
            ids = order[start : start + run.training.batch_size]
            guard.pull()
            with _autocast(device, run.training.precision):
                terms = detector.losses(store.batch(ids).to(device), generator)
            penalty = guard.penalty()
            if penalty is not None:
                terms["ewc"] = penalty
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                values = ", ".join(f"{name} {float(value):.3g}" for name, value in terms.items())
                raise TrainingError(
                    f"step {step}, epoch {epoch}: loss is {float(loss)} ({values}) for samples {ids}"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(detector.parameters(), run.training.clip)
            with guard.projected():
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(ids) / len(order)
            if advance:
                advance(len(ids))
        log += [{"epoch": epoch, "term": name, "value": value} for name, value in sums.items()]
        if time.monotonic() - last_save >= save_seconds and epoch + 1 < plan.epochs:
            state = {
                "key": key,
                "detector": detector.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epoch": epoch + 1,
                "log": log,
            }
            save_checkpoint(partial, state)
            last_save = time.monotonic()
    detector.eval()
    fit_residual_scales(detector, store, sample_ids)
    partial.unlink(missing_ok=True)
    return log


@torch.no_grad()
def fit_statistics(
    detector: ReconstructionDetector, store: FeatureStore, sample_ids: Sequence[str]
) -> None:
    """Mean and standard deviation of every feature channel over the base step's training data."""
    if not detector.config.standardise:
        return
    for modality in detector.modalities:
        total = total_square = torch.zeros(())
        count = 0
        for start in range(0, len(sample_ids), 16):
            features = store.batch(sample_ids[start : start + 16]).features[modality].double()
            count += features[:, 0].numel()
            total = total + features.sum(dim=(0, 2, 3))
            total_square = total_square + features.square().sum(dim=(0, 2, 3))
        mean = total / count
        std = (total_square / count - mean.square()).clamp_min(1e-12).sqrt()
        getattr(detector, f"mean_{modality}").copy_(mean)
        getattr(detector, f"std_{modality}").copy_(std)


@torch.no_grad()
def fit_residual_scales(
    detector: ReconstructionDetector, store: FeatureStore, sample_ids: Sequence[str]
) -> None:
    """Mean residual per target over the step's training data: the unit in which targets' maps are added."""
    if len(detector.targets) == 1:
        return
    device = next(detector.parameters()).device
    sums = dict.fromkeys(detector.targets, 0.0)
    for start in range(0, len(sample_ids), 16):
        ids = sample_ids[start : start + 16]
        for modality, residual in detector.residual_maps(store.batch(ids).to(device)).items():
            sums[modality] += float(residual.mean()) * len(ids) / len(sample_ids)
    for modality, value in sums.items():
        getattr(detector, f"residual_{modality}").fill_(value)


def epoch_seed(seed: int, step: int, epoch: int) -> int:
    """One 63-bit seed per run seed, step and epoch."""
    digest = hashlib.sha256(f"{seed}:{step}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _optimizer(detector: nn.Module, plan: StepPlan, weight_decay: float) -> torch.optim.Optimizer:
    if plan.optimizer == "sgd":
        return torch.optim.SGD(detector.parameters(), lr=plan.lr)
    return torch.optim.AdamW(detector.parameters(), lr=plan.lr, weight_decay=weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, schedule: str, plan: StepPlan, batches: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = plan.epochs * batches
    match schedule:
        case "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=plan.lr, total_steps=total)
        case "step":
            return torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, round(0.8 * total)))
        case _:
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _autocast(device: torch.device, precision: str) -> Any:
    return (
        torch.autocast(device.type, dtype=torch.bfloat16)
        if precision == "bfloat16"
        else nullcontext()
    )
