"""What only a CUDA device can show."""

import pytest
import tiny
import torch

from iumad.study.runner import run_one
from iumad.training.loop import autocast, compile_networks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICE = torch.device("cuda")


def test_the_cpu_model_gives_the_same_maps_on_cuda():
    detector, batch = tiny.detector(), tiny.batch()
    expected = detector.anomaly_maps(batch)
    maps = detector.to(DEVICE).anomaly_maps(batch.to(DEVICE)).cpu()
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "plain"])
def test_bfloat16_trains(method):
    detector = tiny.detector(method, dropout=0.1, neighbour_mask=3).to(DEVICE).train()
    with autocast(DEVICE, "bfloat16"):
        terms = detector.losses(tiny.batch().to(DEVICE), None, True)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())


@pytest.mark.slow
def test_a_run_and_its_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    run = tiny.run("iuf", training={"epochs": 2, "batch_size": 2, "precision": "bfloat16"})
    rows = run_one(run, tmp_path, "cuda")
    assert rows["step"].max() == 1


@pytest.mark.slow
def test_compiled_networks_compute_the_same():
    plain, compiled = (tiny.detector("plain").to(DEVICE).train() for _ in range(2))
    compile_networks(compiled)
    batch = tiny.batch().to(DEVICE)
    first, second = (
        each.losses(batch, torch.Generator(DEVICE).manual_seed(0)) for each in (plain, compiled)
    )
    torch.testing.assert_close(second["fusion"], first["fusion"], rtol=1e-4, atol=1e-5)
