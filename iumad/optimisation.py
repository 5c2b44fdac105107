"""What moves the weights: optimizer, schedule, precision and compilation, each by its key of the configuration."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from iumad.config import RunConfig
from iumad.devices import require_compiler
from iumad.models.base import TrainedDetector


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


def compile_networks(detector: TrainedDetector) -> None:
    """Let torch compile the parts that take the time, in place; weights and their names stay.

    Raises
    ------
    ConfigError
        torch cannot compile on this machine.
    """
    require_compiler(next(detector.parameters()).device)
    for part in detector.compiled_parts():
        part.compile()
