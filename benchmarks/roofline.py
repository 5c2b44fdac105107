"""Kernels, bytes and least time of a full-size step on a card, without a card: python benchmarks/roofline.py.

The step runs on tensors that have sizes and no numbers. Every operation that is a kernel on a card is counted,
with the bytes that it reads and writes and its floating operations. Its least time is the larger of bytes by
bandwidth and operations by peak (3 TB/s, 60 TFLOP/s in float32, 800 in bfloat16). "eager" takes every operation as
a kernel of its own. "fused" takes every unbroken run of elementwise operations and reductions as one kernel, which
reads and writes only what goes in and out: about what torch.compile makes of it. "graphs" has the same kernels, of
which those of a compiled network are launched together, once forward and once back (`training.compile`).

A card is imitated as far as it matters: attention and dropout are fused, and the scan is Triton's. What autocast
does is that of the CPU, which keeps fewer operations in float32 than CUDA does.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from bench_training import Case, full_size
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from iumad.models import reconstruction, scan
from iumad.study.counting import scan_operations
from iumad.training.loop import autocast

BANDWIDTH = 3e12
PEAK = {torch.bfloat16: 800e12, torch.float32: 60e12}
HEAVY = (
    "_foreach",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "attention",
    "selective_scan",
    "_fused",
)
LAUNCH = 5e-6  # seconds that a launch takes where the processor has to make it
TENSORS = 36  # of a list that one launch of a fused optimizer or of a foreach operation takes
SCAN_BACKWARD = (
    3  # operations of the backward scan by those of the forward one: states again, two recurrences
)


@dataclass
class Kernel:
    """One operation: what it reads and writes (tensor -> bytes), and how it computes."""

    name: str
    reads: dict[int, int]
    writes: dict[int, int]
    operations: float
    dtype: torch.dtype
    launches: int = 1
    part: int | None = None  # which compiled network it belongs to

    @property
    def heavy(self) -> bool:
        return any(part in self.name for part in HEAVY)

    @property
    def moved(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())

    @property
    def seconds(self) -> float:
        return max(self.moved / BANDWIDTH, self.operations / PEAK.get(self.dtype, 60e12))


class Recorder(TorchDispatchMode):
    """Writes down every operation that is a kernel on a card."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.numbers = WeakIdKeyDictionary()  # of the memory of every tensor that is alive
        self.count = 0
        self.parts: list[tuple[int, int]] = []  # nodes of autograd that each compiled network made
        self.inside = False
        self.kept: dict[int, int] = {}

    def enter(self, *_: Any) -> None:
        """Before the forward pass of a compiled network."""
        self.inside = True
        self.parts.append((torch._C._autograd._get_sequence_nr(), 2**62))

    def leave(self, *_: Any) -> None:
        """After it."""
        self.inside = False
        self.parts[-1] = (self.parts[-1][0], torch._C._autograd._get_sequence_nr())

    def keep(self, *tensors: Tensor) -> Tensor:
        """Note the memory of tensors that a step keeps, views of the same memory once; returns the first."""
        for x in tensors:
            storage = x.untyped_storage()
            self.kept[storage._cdata] = storage.nbytes()
        return tensors[0]

    def _part(self) -> int | None:
        """The network that computes now, forward or backward."""
        if self.inside:
            return len(self.parts)
        node = torch._C._current_autograd_node()
        number = 2**63 if node is None else node._sequence_nr()
        return next((-i for i, (a, b) in enumerate(self.parts, 1) if a <= number < b), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if self._is_view(func):
            self.numbers.update({x: self._number(inputs[0]) for x in outputs if inputs})
            return out
        operations, dtype = self._operations(func, args, kwargs, out, inputs)
        written = outputs or inputs  # lists that are changed in place return nothing
        reads, writes = self._sizes(inputs), self._sizes(written)
        lists = [len(x) for x in args if isinstance(x, list)]
        launches = -(-max(lists, default=1) // TENSORS)
        kernel = Kernel(str(func), reads, writes, operations, dtype, launches, self._part())
        self.kernels.append(kernel)
        return out

    def _number(self, x: Tensor) -> int:
        if x not in self.numbers:
            self.count += 1
            self.numbers[x] = self.count
        return self.numbers[x]

    def _sizes(self, tensors: Iterable[Tensor]) -> dict[int, int]:
        # an expanded tensor is read once
        return {self._number(x): min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors}

    @staticmethod
    def _is_view(func: Any) -> bool:
        name = func.overloadpacket.__name__
        aliases = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
        asks = func.namespace == "prim" or name.startswith(
            ("promote_types", "result_type", "is_same")
        )
        return asks or aliases or name.startswith(("empty", "new_empty", "_unsafe_view", "detach"))

    @staticmethod
    def _operations(
        func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor]
    ) -> tuple[float, torch.dtype]:
        name = str(func)
        if "selective_scan" in name:
            u, a = (args[1], args[3]) if "backward" in name else (args[0], args[2])
            forward = scan_operations(*u.shape, a.shape[1])
            return forward * (SCAN_BACKWARD if "backward" in name else 1), torch.float32
        if func.overloadpacket is torch.ops.aten.convolution_backward:
            weight, output = (
                args[2],
                args[0],
            )  # torch's own count forgets that groups divide the work
            return 2 * 2 * output.numel() * weight[0].numel(), output.dtype
        count = flop_registry.get(func.overloadpacket)
        dtype = inputs[0].dtype if inputs else torch.float32
        return (count(*args, **(kwargs or {}), out_val=out) if count else 0), dtype


def fuse(kernels: list[Kernel]) -> list[Kernel]:
    """Join unbroken runs of light kernels; what is made and used up inside a run moves no bytes."""
    groups: list[list[Kernel]] = []
    for kernel in kernels:
        last = groups[-1][-1] if groups else kernel
        if groups and not kernel.heavy and not last.heavy and kernel.part == last.part:
            groups[-1].append(kernel)
        else:
            groups.append([kernel])
    last_read = {key: i for i, group in enumerate(groups) for k in group for key in k.reads}
    joined = []
    for i, group in enumerate(groups):
        made: dict[int, int] = {}
        reads: dict[int, int] = {}
        for kernel in group:
            reads |= {key: size for key, size in kernel.reads.items() if key not in made}
            made |= kernel.writes
        writes = {key: size for key, size in made.items() if last_read.get(key, -1) > i}
        name = group[0].name if len(group) == 1 else f"run of {len(group)}"
        operations = sum(kernel.operations for kernel in group)
        joined.append(Kernel(name, reads, writes, operations, group[0].dtype, part=group[0].part))
    return joined


def as_graphs(kernels: list[Kernel]) -> list[Kernel]:
    """The kernels with one launch for an unbroken run of the same network."""
    before = [None, *(kernel.part for kernel in kernels)]
    return [
        replace(kernel, launches=0) if kernel.part and kernel.part == last else kernel
        for kernel, last in zip(kernels, before, strict=False)
    ]


def on_a_card() -> list[mock._patch]:
    """What the code does differently on a card, to be in force while a step is recorded."""

    clip = nn.utils.clip_grad_norm_

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, p: float = 0.0) -> Tensor:
        assert attn_mask is None
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, p, False)[0]

    def dropout(module: nn.Module, x: Tensor) -> Tensor:
        return functional.dropout(x, module.probability, module.training)

    return [
        mock.patch.object(
            nn.Module, "to", lambda module, *_: module
        ),  # they have no numbers to move
        mock.patch.object(nn.utils, "clip_grad_norm_", partial(clip, foreach=True)),
        mock.patch.object(functional, "scaled_dot_product_attention", attention),
        mock.patch.object(reconstruction, "attention_with_dropout", attention),
        mock.patch.object(reconstruction.Dropout, "forward", dropout),
        mock.patch.object(scan, "_choose", lambda *_: "triton"),
    ]


def record(method: str, precision: str, batch: int, training: bool) -> tuple[list[Kernel], int]:
    """Kernels of a step; bytes of what its backward pass needs, of weights, gradients and AdamW's two moments."""
    run = full_size(method, [f"training.precision={precision}", "model.jitter_probability=1"])
    with FakeTensorMode(), ExitStack() as stack:
        for patch in on_a_card():
            stack.enter_context(patch)
        case = Case(run, batch, torch.device("cpu"))
        if training:
            case.train()  # the first time makes the optimizer's state
        with Recorder() as recorder:
            if training:
                for part in case.detector.compiled_parts():
                    part.register_forward_pre_hook(recorder.enter)
                    part.register_forward_hook(recorder.leave)
                with torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda x: x):
                    case.train()
            else:
                with autocast(torch.device("cpu"), precision):
                    case.infer()
    parameters = list(case.detector.parameters())
    recorder.keep(*parameters)
    weights = sum(p.nbytes for p in parameters)
    return recorder.kernels, sum(recorder.kept.values()) + 3 * weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="ib-iumad")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--kernels", type=int, default=0, help="show the most frequent so many")
    parser.add_argument("--out", type=Path, help="CSV of the table")
    arguments = parser.parse_args()
    rows = []
    for training in (True, False):
        for precision in ("float32", "bfloat16"):
            kernels, kept = record(arguments.method, precision, arguments.batch, training)
            what = {"pass": "training" if training else "inference", "precision": precision}
            fused = fuse(kernels)
            ways = {"eager": kernels, "fused": fused}
            if training:  # tests are not compiled
                ways["graphs"] = as_graphs(fused)
            for name, counted in ways.items():
                row = what | {"kernels_as": name} | totals(counted, arguments.batch)
                rows.append(row | {"memory_gb": round(kept / 1e9, 1)} if name == "eager" else row)
            if arguments.kernels:
                show(kernels, arguments.kernels)
    table = pd.DataFrame(rows)
    print(f"{arguments.method}, full size, batch {arguments.batch}\n{table.to_string(index=False)}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.out, index=False)


def totals(kernels: list[Kernel], batch: int) -> dict[str, float]:
    """Of a step: what it takes at least, and if no launch takes less than `LAUNCH`."""
    least = sum(k.seconds for k in kernels)
    launched = sum(max(k.seconds, LAUNCH * k.launches) for k in kernels)
    return {
        "launches": sum(k.launches for k in kernels),
        "gigabytes": round(sum(k.moved for k in kernels) / 1e9, 2),
        "gflop_per_image": round(sum(k.operations for k in kernels) / 1e9 / batch, 1),
        "least_ms": round(1e3 * least, 2),
        "images_per_s_at_most": round(batch / least),
        "images_per_s_at_5us_a_launch": round(batch / launched),
    }


def show(kernels: list[Kernel], rows: int) -> None:
    """The most frequent kernels with their least time."""
    for name, count in Counter(k.name for k in kernels).most_common(rows):
        same = [k for k in kernels if k.name == name]
        milliseconds = 1e3 * sum(k.seconds for k in same)
        gflop = sum(k.operations for k in same) / 1e9
        print(f"{count:5} {milliseconds:8.3f} ms {gflop:7.1f} GFLOP  {name}")


if __name__ == "__main__":
    main()
