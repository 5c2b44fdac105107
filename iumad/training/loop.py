"""Training of one step: one explicit loop, resumable within the step to the same bits.

All randomness of an epoch (order, jitter, dropout) comes from a seed derived from run seed, step and epoch, so an
unfinished step is saved without any generator's state: training resumed from it is the training that was cut off.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iumad.config.schema import RunConfig
from iumad.config.sections import IncrementConfig, TrainingConfig
from iumad.errors import IumadError
from iumad.features.cache import FeatureStore
from iumad.models.base import Detector
from iumad.models.build import require_compiler
from iumad.training.checkpoint import load_checkpoint, save_checkpoint
from iumad.training.increments import Guard, Memory

LogRow = dict[str, Any]  # epoch, term, value


class TrainingError(IumadError):
    """A loss or a weight became NaN or infinite."""


@dataclass(frozen=True)
class StepPlan:
    """How one step is trained: the base step by `training`, later ones by `increment` where it differs.

    Attributes
    ----------
    step, epochs, lr, optimizer
        Number of the step (0 is the base), and what it has of its own.
    seed : int
        The run's.
    recipe : str
        Hash of all that decides how the step is trained, but for its images; runs that agree in both may finish
        each other's training (`Unfinished`).
    training, increment : sections of the configuration
    """

    step: int
    epochs: int
    lr: float
    optimizer: str
    seed: int
    recipe: str
    training: TrainingConfig
    increment: IncrementConfig

    @classmethod
    def of(cls, run: RunConfig, step: int) -> "StepPlan":
        """The plan of one step of a run."""
        base, increment = run.training, run.increment
        own = (
            (increment.epochs, increment.lr, increment.optimizer)
            if step
            else (base.epochs, base.lr, "adamw")
        )
        without_names = [()] * (step + 1)  # the images say which categories they are
        return cls(step, *own, run.seed, run.step_key(without_names), base, increment)


@dataclass(frozen=True)
class Watch:
    """Who looks on while a step is trained.

    Attributes
    ----------
    samples : callable, optional
        Called with the number of samples just trained on, or found trained in an unfinished step (a progress bar).
    epoch : callable, optional
        Called with the detector, which it must not change, and the number of the epoch just finished.
    """

    samples: Callable[[int], object] = lambda _count: None
    epoch: Callable[[Detector, int], object] = lambda _detector, _epoch: None


def fit_step(
    detector: Detector,
    store: FeatureStore,
    sample_ids: Sequence[str],
    plan: StepPlan,
    memory: Memory,
    unfinished: Path | None = None,
    watch: Watch = Watch(),
) -> list[LogRow]:
    """Train `detector` in place on one step's samples.

    Parameters
    ----------
    detector : on its device; for a later step the model of the step before
    store, sample_ids : the step's training data, nothing else is read
    plan : StepPlan
    memory : what is remembered of earlier steps (`iumad.training.increments.remember`)
    unfinished : file; training goes on from it where it exists. Whoever has saved the detector deletes it. None:
        nothing is saved
    watch : Watch

    Returns
    -------
    list of dict
        epoch, term, value: the mean of every loss term over each epoch.

    Raises
    ------
    TrainingError
        A loss or a weight is not finite; the text names step and epoch.
    CheckpointError
        `unfinished` cannot be read or belongs to another run.
    """
    if plan.step:
        detector.begin_increment()
    guard = Guard(detector, plan.increment, memory)
    samples = [*sample_ids, *guard.replayed]
    inputs = guard.inputs(store)
    inputs.load(samples, detector.device)
    detector.fit(store, sample_ids, torch.Generator().manual_seed(plan.seed))
    updates, log = Updates(detector, plan, len(samples)), LossLog(plan.step)
    saved = Unfinished(unfinished, plan, samples, updates, log)
    first_epoch = saved.resume()
    watch.samples(first_epoch * len(samples))
    learns = any(p.requires_grad for p in detector.parameters())
    for epoch in range(first_epoch, plan.epochs if learns else 0):
        detector.train().begin_epoch(epoch, plan.epochs)
        order, generator = shuffled(samples, plan, epoch, detector.device)
        for batch_ids in parts(order, plan.training.batch_size):
            if plan.step:  # the base step has no old weights
                guard.pull()
            batch = inputs.batch(batch_ids, detector.device)
            with updates.forward_pass():
                terms = detector.losses(batch, generator, plan.step == 0) | guard.penalty()
            loss = log.add(terms, epoch, batch_ids, len(samples))
            with guard.projected():
                updates.descend(loss)
            watch.samples(len(batch_ids))
        log.end(epoch, detector)
        saved.save_when_due(epoch + 1)
        watch.epoch(detector, epoch)
    detector.eval().calibrate(store, sample_ids)
    return log.rows


class Updates:
    """What moves the weights: optimizer, schedule, clipping, precision and compilation, as a plan says.

    Parameters
    ----------
    detector : Detector
    plan : StepPlan
    samples : int
        Of the step: they decide how many updates the schedule has.

    Raises
    ------
    ConfigError
        The plan asks for compilation, and torch cannot compile on this machine.
    """

    def __init__(self, detector: Detector, plan: StepPlan, samples: int) -> None:
        self.detector, self.training = detector, plan.training
        self.optimizer = make_optimizer(detector, plan)
        per_epoch = -(-samples // plan.training.batch_size)
        self.scheduler = make_scheduler(self.optimizer, plan, per_epoch)
        self._networks: CompiledNetworks | nullcontext[None] = nullcontext()
        if plan.training.compile:
            self._networks = CompiledNetworks(detector)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Around the losses: networks compiled, and matrix products in the precision that the plan says."""
        with self._networks, autocast(self.detector.device, self.training.precision):
            yield

    def descend(self, loss: Float[Tensor, ""]) -> None:
        """One update from one loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.training.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


class LossLog:
    """The mean of every loss term over each epoch, and the guard against numbers that are not finite.

    On a card the losses are looked at when the epoch ends, so that no step waits for the one before.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows: list[LogRow] = []
        self._sums: dict[str, Float[Tensor, ""]] = {}

    def add(
        self,
        terms: dict[str, Float[Tensor, ""]],
        epoch: int,
        batch_ids: Sequence[str],
        samples: int,
    ) -> Float[Tensor, ""]:
        """Note the terms of one batch out of so many samples; returns the loss, their sum."""
        loss = torch.stack(list(terms.values())).sum()
        if loss.device.type == "cpu" and not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise TrainingError(
                f"step {self.step}, epoch {epoch}: loss is {loss.item()} ({values}) for samples {list(batch_ids)}"
            )
        for name, value in terms.items():  # summed on the device, so that nothing waits for it
            part = value.detach().double() * (len(batch_ids) / samples)
            self._sums[name] = self._sums[name] + part if name in self._sums else part
        return loss

    def end(self, epoch: int, detector: Detector) -> None:
        """Write the epoch's rows; losses or weights that are no numbers any more are refused."""
        means = {name: float(value) for name, value in self._sums.items()}
        tensors = {name: x for name, x in detector.state_dict().items() if isinstance(x, Tensor)}
        finite = torch.stack([torch.isfinite(x).all() for x in tensors.values()]).tolist()
        bad = [f"loss {name}" for name, value in means.items() if not math.isfinite(value)]
        bad += [name for name, whole in zip(tensors, finite, strict=True) if not whole]
        if bad:
            raise TrainingError(
                f"step {self.step}, epoch {epoch}: {bad[0]} is not finite after the last update; "
                "lower the learning rate"
            )
        self.rows += [
            {"epoch": epoch, "term": name, "value": value} for name, value in means.items()
        ]
        self._sums = {}


class Unfinished:
    """The file of a step that is not finished, from which its training goes on.

    Parameters
    ----------
    path : Path, optional
        None: nothing is read or written.
    plan, samples : which training it is; another one's file is refused
    updates, log : what is saved
    """

    SECONDS: ClassVar[float] = 60.0  # between two saves

    def __init__(
        self,
        path: Path | None,
        plan: StepPlan,
        samples: Sequence[str],
        updates: Updates,
        log: LossLog,
    ) -> None:
        self.path, self.log = path, log
        self.key = {
            "run": plan.recipe,
            "step": plan.step,
            "samples": hashlib.sha256("\n".join(samples).encode()).hexdigest(),
        }
        self._parts: dict[str, Any] = {
            "detector": updates.detector,
            "optimizer": updates.optimizer,
            "scheduler": updates.scheduler,
        }
        self._last_save = time.monotonic()

    def resume(self) -> int:
        """Load what there is; returns the number of epochs that are done."""
        if self.path is None or not self.path.exists():
            return 0
        saved = load_checkpoint(self.path, self.key)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self.log.rows = saved["log"]
        return saved["epoch"]

    def save_when_due(self, epoch: int) -> None:
        """Save after `epoch` epochs, if the last save was long ago."""
        if self.path is None or time.monotonic() - self._last_save < self.SECONDS:
            return
        state = {name: part.state_dict() for name, part in self._parts.items()}
        save_checkpoint(self.path, {"key": self.key, "epoch": epoch, "log": self.log.rows} | state)
        self._last_save = time.monotonic()


def make_optimizer(detector: nn.Module, plan: StepPlan) -> torch.optim.Optimizer:
    """AdamW, or IUF's plain SGD without momentum and weight decay.

    Updates of all parameters are one fused call; hundreds of small ones take a tenth of a step.
    """
    if plan.optimizer == "sgd":
        return torch.optim.SGD(detector.parameters(), lr=plan.lr, fused=True)
    decay = plan.training.weight_decay
    return torch.optim.AdamW(detector.parameters(), lr=plan.lr, weight_decay=decay, fused=True)


def make_scheduler(
    optimizer: torch.optim.Optimizer, plan: StepPlan, updates: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rate per update; `updates` are those of one epoch."""
    total = plan.epochs * updates
    match plan.training.schedule:
        case "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=plan.lr,
                total_steps=total,
                cycle_momentum=plan.optimizer == "adamw",  # SGD is to stay without momentum
            )
        case "step":
            return torch.optim.lr_scheduler.StepLR(optimizer, step_size=max(1, round(0.8 * total)))
        case "constant":
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case _:
            assert_never(plan.training.schedule)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Matrix products in bfloat16 where the precision says so; weights and losses stay float32."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class CompiledNetworks:
    """A context in which the parts of a detector that take the time are compiled by torch.

    On a card each part is also recorded as two CUDA graphs, forward and backward, so that hundreds of kernels are
    launched as one. Outside of the context the parts are as before, because compiled code does not call the hooks
    by which layers are looked at between two steps. Weights and their names stay. Only the latest of these
    contexts is compiled: graphs recorded for other weights would stay on the card.

    Parameters
    ----------
    detector : Detector
        On its device.

    Raises
    ------
    ConfigError
        torch cannot compile on this machine.
    """

    def __init__(self, detector: Detector) -> None:
        self._on_card = detector.device.type == "cuda"
        mode = "reduce-overhead" if self._on_card else "default"
        # forget what earlier steps compiled: past a limit torch would leave networks uncompiled, and say little
        torch.compiler.reset()
        require_compiler(detector.device, mode)
        parts = detector.compiled_parts()
        self._forwards = [(part, torch.compile(part.forward, mode=mode)) for part in parts]

    def __enter__(self) -> None:
        if self._on_card:
            torch.compiler.cudagraph_mark_step_begin()  # memory of the last batch's graphs is free
        for part, forward in self._forwards:
            part.forward = forward

    def __exit__(self, *_: object) -> None:
        for part, _forward in self._forwards:
            del part.forward


def shuffled(
    samples: Sequence[str], plan: StepPlan, epoch: int, device: torch.device
) -> tuple[list[str], torch.Generator]:
    """The order of an epoch, and its source of noise; torch's global generator, which dropout uses, is seeded."""
    seed = epoch_seed(plan.seed, plan.step, epoch)
    torch.manual_seed(seed)
    order = [samples[i] for i in torch.randperm(len(samples))]
    return order, torch.Generator(device).manual_seed(seed)


def epoch_seed(seed: int, step: int, epoch: int) -> int:
    """One 63-bit seed per run seed, step and epoch."""
    text = f"{seed}:{step}:{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def parts(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    """Consecutive parts of at most this size."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]
