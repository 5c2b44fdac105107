"""Training of one step: one explicit loop, resumable within the step to the same bits.

All randomness of an epoch (order, jitter, dropout) comes from a seed derived from run seed, step and epoch, so a
checkpoint written after an epoch needs no generator state: training resumed from it is the training that was
interrupted.

What moves the weights: optimizer, schedule, precision and compilation, each by its key of the configuration.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iumad.config.schema import RunConfig
from iumad.errors import IumadError
from iumad.features.cache import FeatureStore
from iumad.models.base import Detector
from iumad.models.device import require_compiler
from iumad.training.checkpoint import load_checkpoint, save_checkpoint
from iumad.training.increments import Guard, Memory


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


def make_optimizer(
    detector: nn.Module, plan: StepPlan, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW, or IUF's plain SGD without momentum and weight decay.

    Updates of all parameters are one fused call; hundreds of small ones take a tenth of a step.
    """
    if plan.optimizer == "sgd":
        return torch.optim.SGD(detector.parameters(), lr=plan.lr, fused=True)
    return torch.optim.AdamW(
        detector.parameters(), lr=plan.lr, weight_decay=weight_decay, fused=True
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: str, plan: StepPlan, updates: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate per update; `updates` are those of one epoch."""
    total = plan.epochs * updates
    match schedule:
        case "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=plan.lr,
                total_steps=total,
                cycle_momentum=plan.optimizer == "adamw",  # SGD is to stay without momentum
            )
        case "step":
            return torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, round(0.8 * total)))
        case _:
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Matrix products in bfloat16 where the precision says so; weights and losses stay float32."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def compile_networks(detector: Detector) -> None:
    """Let torch compile the parts that take the time, in place; weights and their names stay.

    Raises
    ------
    ConfigError
        torch cannot compile on this machine.
    """
    require_compiler(next(detector.parameters()).device)
    for part in detector.compiled_parts():
        part.compile()


LogRow = dict[str, Any]  # epoch, term, value


class TrainingError(IumadError):
    """The loss became NaN or infinite."""


def fit_step(
    detector: Detector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    run: RunConfig,
    step: int,
    memory: Memory,
    partial: Path,
    advance: Callable[[int], object] | None = None,
    save_seconds: float = 60.0,
    after_epoch: Callable[[Detector, int], object] | None = None,
) -> list[LogRow]:
    """Train `detector` in place on one step's samples.

    Parameters
    ----------
    detector : on its device; for step > 0 the model of the step before
    store, sample_ids : the step's training data, nothing else is read
    run, step : configuration and number of the step
    memory : what is remembered of earlier steps (`iumad.training.increments.remember`)
    partial : file of the unfinished step; training goes on from it where it exists, it is deleted at the end
    advance : called with the number of samples just trained on (a progress bar)
    save_seconds : an unfinished step is saved after the first epoch that ends this long after the last save
    after_epoch : called with the detector, which it must not change, and the number of the epoch just finished

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
    plan, training = StepPlan.of(run, step), run.training
    device = detector.device
    detector.fit(store, sample_ids, torch.Generator().manual_seed(run.seed))
    if step:
        detector.begin_increment()
    guard = Guard(detector, run.increment, memory)
    samples = [*sample_ids, *guard.replayed]
    optimizer = make_optimizer(detector, plan, training.weight_decay)
    scheduler = make_scheduler(
        optimizer, training.schedule, plan, -(-len(samples) // training.batch_size)
    )
    key = {
        "run": run.step_key([()] * (step + 1)),  # runs that share the step may finish each other's
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
    if training.compile:
        compile_networks(detector)
    last_save = time.monotonic()
    detector.train()
    for epoch in range(first_epoch, plan.epochs):
        detector.begin_epoch(epoch, plan.epochs)
        seed = epoch_seed(run.seed, step, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        order = [samples[i] for i in torch.randperm(len(samples))]
        sums: dict[str, float] = {}
        for batch_ids in _parts(order, training.batch_size):
            guard.pull()
            batch = store.batch(batch_ids).to(device)
            with autocast(device, training.precision):
                terms = detector.losses(batch, generator, step == 0)
            penalty = guard.penalty()
            if penalty is not None:
                terms["ewc"] = penalty
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise TrainingError(_not_finite(step, epoch, loss, terms, batch_ids))
            loss.backward()
            for name, value in terms.items():
                share = len(batch_ids) / len(order)
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * share
            if advance:
                advance(len(batch_ids))
            nn.utils.clip_grad_norm_(detector.parameters(), training.clip)
            with guard.projected():
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        log += [{"epoch": epoch, "term": name, "value": value} for name, value in sums.items()]
        late = time.monotonic() - last_save >= save_seconds and epoch + 1 < plan.epochs
        if late:
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
        if after_epoch:
            after_epoch(detector, epoch)
    detector.eval()
    detector.calibrate(store, sample_ids)
    partial.unlink(missing_ok=True)
    return log


def epoch_seed(seed: int, step: int, epoch: int) -> int:
    """One 63-bit seed per run seed, step and epoch."""
    text = f"{seed}:{step}:{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _parts(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _not_finite(
    step: int, epoch: int, loss: torch.Tensor, terms: dict[str, torch.Tensor], ids: Sequence[str]
) -> str:
    values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
    return f"step {step}, epoch {epoch}: loss is {loss.item()} ({values}) for samples {list(ids)}"
