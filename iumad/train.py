"""Training of one step: one explicit loop, resumable within the step to the same bits.

All randomness of an epoch (order, jitter, dropout) comes from a seed derived from run seed, step and epoch, so a
checkpoint written after an epoch needs no generator state: training resumed from it is the training that was
interrupted.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iumad import distributed
from iumad.calibrate import fit_residual_scales, fit_statistics
from iumad.checkpoint import load_checkpoint, save_checkpoint
from iumad.config import RunConfig
from iumad.errors import IumadError
from iumad.increments import Guard, Memory
from iumad.models.base import TrainedDetector
from iumad.optimisation import (
    StepPlan,
    autocast,
    compile_networks,
    make_optimizer,
    make_scheduler,
)
from iumad.store import FeatureStore

LogRow = dict[str, Any]  # epoch, term, value


class TrainingError(IumadError):
    """The loss became NaN or infinite."""


def fit_step(
    detector: TrainedDetector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    run: RunConfig,
    step: int,
    memory: Memory,
    partial: Path,
    advance: Callable[[int], object] | None = None,
    save_seconds: float = 60.0,
    after_epoch: Callable[[TrainedDetector, int], object] | None = None,
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
    device = next(detector.parameters()).device
    if step == 0:
        fit_statistics(detector, store, sample_ids)
    else:
        detector.begin_increment()
    guard = Guard(detector, run.increment, memory)
    samples = [*sample_ids, *guard.replayed]
    per_update = training.batch_size * training.accumulation
    optimizer = make_optimizer(detector, plan, training.weight_decay)
    scheduler = make_scheduler(optimizer, training.schedule, plan, -(-len(samples) // per_update))
    key = {
        "run": run.step_key([()] * (step + 1)),  # runs that share the step may finish each other's
        "step": step,
        "samples": hashlib.sha256("\n".join(samples).encode()).hexdigest(),
    }
    log: list[LogRow] = []
    first_epoch = 0
    if distributed.agree(partial.exists()):
        saved = load_checkpoint(partial, key)
        detector.load_state_dict(saved["detector"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first_epoch, log = saved["epoch"], saved["log"]
        if advance:
            advance(first_epoch * len(samples))
    if training.compile:
        compile_networks(detector)
    network = distributed.data_parallel(detector, detector.every_parameter)
    last_save = time.monotonic()
    detector.train()
    for epoch in range(first_epoch, plan.epochs):
        detector.begin_epoch(epoch, plan.epochs)
        seed = epoch_seed(run.seed, step, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator(device).manual_seed(seed)
        order = [samples[i] for i in torch.randperm(len(samples))]
        if not distributed.is_first():
            torch.manual_seed(epoch_seed(run.seed, step, epoch, distributed.rank()))  # of dropout
        sums: dict[str, float] = {}
        for group in _parts(order, per_update):
            guard.pull()
            batches = _parts(group, training.batch_size)
            for i, batch_ids in enumerate(batches):
                share = distributed.share(batch_ids)
                batch = replace(store.batch(share.ids), first=share.first, total=share.total)
                weight = share.weight * len(batch_ids)
                with distributed.local_gradients(network, last=i == len(batches) - 1):
                    with autocast(device, training.precision):
                        terms = network(batch.to(device), generator, step == 0)
                    penalty = guard.penalty()
                    if penalty is not None:
                        terms["ewc"] = penalty
                    loss = torch.stack(list(terms.values())).sum()
                    if not torch.isfinite(loss):
                        raise TrainingError(_not_finite(step, epoch, loss, terms, share.ids))
                    (loss * (weight / len(group))).backward()
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) * weight / len(order)
                if advance:
                    advance(len(batch_ids))
            nn.utils.clip_grad_norm_(detector.parameters(), training.clip)
            with guard.projected():
                optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        means = distributed.average(sums)
        log += [{"epoch": epoch, "term": name, "value": value} for name, value in means.items()]
        late = time.monotonic() - last_save >= save_seconds and epoch + 1 < plan.epochs
        if late and distributed.is_first():
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
    fit_residual_scales(detector, store, sample_ids)
    if distributed.is_first():
        partial.unlink(missing_ok=True)
    return log


def epoch_seed(seed: int, step: int, epoch: int, rank: int = 0) -> int:
    """One 63-bit seed per run seed, step, epoch, and process but the first."""
    text = f"{seed}:{step}:{epoch}" + (f":{rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _parts(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _not_finite(
    step: int, epoch: int, loss: torch.Tensor, terms: dict[str, torch.Tensor], ids: Sequence[str]
) -> str:
    values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
    return f"step {step}, epoch {epoch}: loss is {loss.item()} ({values}) for samples {list(ids)}"
