"""Gradient accumulation, mixed precision and compilation."""

import os
import subprocess
import sys

import pytest
import tiny
import torch

from iumad.data import open_dataset
from iumad.features.cache import FeatureStore
from iumad.training import loop as optimisation
from iumad.training.increments import remember
from iumad.training.loop import StepPlan, fit_step


@pytest.fixture
def fitted(tmp_path):
    """Train the base step of a run; returns its detector and its log."""

    def fit(run):
        dataset = open_dataset(run.data)
        store = FeatureStore(dataset, run, tmp_path / "cache")
        index = dataset.index
        ids = index.loc[index["split"] == "train", "sample_id"].tolist()[:6]
        torch.manual_seed(0)
        detector = tiny.trainable(store, run)
        log = fit_step(detector, store, ids, StepPlan.of(run, 0), {})
        return detector, log

    return fit


@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "plain"])
def test_bfloat16_trains_like_float32(method):
    """Autocast also with the compiled scan and a neighbour mask: losses within bfloat16's two to three digits."""
    losses = []
    for precision in ("float32", "bfloat16"):
        detector = tiny.detector(method, neighbour_mask=3).train()
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        with optimisation.autocast(torch.device("cpu"), precision):
            terms = detector.losses(tiny.batch(), generator, True)
        torch.stack(list(terms.values())).sum().backward()
        for name, p in detector.named_parameters():
            assert torch.isfinite(p.grad).all(), (name, precision, p.grad)
        assert {name: term.dtype for name, term in terms.items()} == dict.fromkeys(
            terms, torch.float32
        )
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    assert losses[1] == pytest.approx(losses[0], rel=0.03, abs=0.01)


COMPILED = """
import functools, tiny, torch
from torch._dynamo.utils import counters
from iumad.models.detector import ReconstructionDetector
from iumad.training import loop
from iumad.training.increments import second_moments

loop.require_compiler = lambda device, mode: None
torch.compile = functools.partial(torch.compile, backend="eager")
torch.compiler.cudagraph_mark_step_begin = lambda: marked.append(True)
marked = []


class Store:
    def batch(self, ids):
        return tiny.batch(size=len(ids))


def losses(detector, size):
    torch.manual_seed(0)
    return detector.losses(tiny.batch(size=size), torch.Generator().manual_seed(0), True)


for method in ("ib-iumad", "iuf"):
    plain, compiled = tiny.detector(method).train(), tiny.detector(method).train()
    networks = loop.CompiledNetworks(compiled)
    for size in (6, 6, 4):  # the last batch of an epoch is smaller
        with networks:
            second = losses(compiled, size)
        for name, term in losses(plain, size).items():
            torch.testing.assert_close(second[name], term, rtol=1e-5, atol=1e-6)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    first, second = (second_moments(each, Store(), "abcd", 0) for each in (plain, compiled))
    torch.testing.assert_close(second, first)
assert counters["stats"]["unique_graphs"] >= 6
assert not counters["graph_break"], "more than one graph a network"
assert not marked, "no graphs of CUDA on a CPU"

torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = 2, True
for n_categories in range(3, 7):  # a network for each step of a run
    model = tiny.run("ib-iumad").model
    grown = ReconstructionDetector(model, tiny.spec(), n_categories).train()
    with loop.CompiledNetworks(grown):
        losses(grown, 6)
"""


def test_weights_and_gradients_allow_recorded_graphs():
    """A CUDA graph reads weights where they lay when it was recorded, and its next run frees old gradients."""
    run = tiny.run("iuf", increment={"epochs": 2, "pull": 0.05, "strategy": "projection"})
    store = tiny.open_store(run)
    detector, ids = tiny.trainable(store, run), tiny.train_ids(store, *tiny.CATEGORIES[:2])
    memory = remember(detector, store, ids, run.increment, {}, 0)
    places, passes = {name: x.data_ptr() for name, x in detector.state_dict().items()}, []

    def look(_module, _inputs):
        passes.append(all(p.grad is None for p in detector.parameters()))

    detector.register_forward_pre_hook(look)
    fit_step(detector, store, ids, StepPlan.of(run, 1), memory)
    assert passes == [True] * 6  # 6 images in batches of 2, twice
    assert {name: x.data_ptr() for name, x in detector.state_dict().items()} == places


@pytest.mark.slow
def test_compiled_networks_compute_the_same(repository):
    """Traced by torch.compile, but not turned into machine code, which takes minutes.

    In a process of its own: functions whose shapes are checked at run time cannot be traced.
    """
    environment = os.environ | {"PYTHONPATH": f"{repository}{os.pathsep}{repository / 'tests'}"}
    subprocess.run([sys.executable, "-c", COMPILED], env=environment, check=True)
