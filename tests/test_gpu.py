"""What only a CUDA device can show, and what tensors without numbers can show of it anywhere."""

import pytest
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from iumad.features import cache
from iumad.features.cache import Batch
from iumad.study.parallel import share_card
from iumad.study.runner import run_one
from iumad.training.loop import CompiledNetworks, LossLog, autocast

DEVICE = torch.device("cuda")


def on_a_card(test):
    """Mark a test that computes on a card."""
    missing = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(missing, reason="no CUDA device here")(test))


@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "plain"])
def test_no_step_waits_for_the_card(method):
    """Whoever asks a tensor for a number makes the processor wait; these tensors have none and would refuse."""
    with FakeTensorMode(), DEVICE:
        detector = tiny.detector(method, dropout=0.1).train()
        batch = Batch(
            {m: torch.empty(3, tiny.CHANNELS, tiny.GRID, tiny.GRID) for m in detector.modalities},
            {m: torch.empty(3, 3, tiny.SIZE, tiny.SIZE) for m in detector.modalities},
            torch.empty(3, dtype=torch.int64),
        )
        terms = detector.losses(batch, None, True)  # autocast is refused where there is no card
        LossLog(0).add(terms, 0, ["a", "b", "c"], 3)
        detector.eval().anomaly_maps(batch)
    assert all(term.device.type == "cuda" for term in terms.values())
    assert all(term.dtype == torch.float32 for term in terms.values())


@on_a_card
def test_the_cpu_model_gives_the_same_maps_on_cuda():
    detector, batch = tiny.detector(), tiny.batch()
    expected = detector.anomaly_maps(batch)
    maps = detector.to(DEVICE).anomaly_maps(batch.to(DEVICE)).cpu()
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)


@on_a_card
@pytest.mark.parametrize("method", ["ib-iumad", "iuf", "plain"])
def test_bfloat16_trains(method):
    detector = tiny.detector(method, dropout=0.1, neighbour_mask=3).to(DEVICE).train()
    with autocast(DEVICE, "bfloat16"):
        terms = detector.losses(tiny.batch().to(DEVICE), None, True)
    torch.stack(list(terms.values())).sum().backward()
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())


@on_a_card
@pytest.mark.slow
def test_a_run_and_its_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    run = tiny.run("iuf", training={"epochs": 2, "batch_size": 2, "precision": "bfloat16"})
    rows = run_one(run, tmp_path, "cuda")
    assert rows["step"].max() == 1


@on_a_card
@pytest.mark.slow
def test_compiled_networks_train_the_same():
    plain, compiled = (tiny.detector("plain").to(DEVICE).train() for _ in range(2))
    networks, batch = CompiledNetworks(compiled), tiny.batch().to(DEVICE)
    for repeat in range(4):  # warm-up, recording, replays
        first = plain.losses(batch, torch.Generator(DEVICE).manual_seed(repeat))
        with networks:
            second = compiled.losses(batch, torch.Generator(DEVICE).manual_seed(repeat))
        torch.testing.assert_close(second["fusion"], first["fusion"], rtol=1e-4, atol=1e-5)
        for each, detector in ((first, plain), (second, compiled)):
            torch.stack(list(each.values())).sum().backward()
            with torch.no_grad():
                for p in detector.parameters():
                    p -= 1e-3 * p.grad
                    p.grad = None


@pytest.mark.parametrize(("free", "room"), [(80e9, 10e9), (6e9, 3e9)])
def test_inputs_take_half_of_a_process_s_share(monkeypatch, free, room):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 0.25)
    assert cache._room_on(DEVICE) == room


@pytest.mark.parametrize(("card", "shares"), [("cpu", []), ("cuda:1", [(0.225, "cuda:1")])])
def test_processes_share_the_memory_of_a_card(monkeypatch, card, shares):
    given = []
    monkeypatch.setattr("iumad.study.parallel.pick_device", lambda _: torch.device(card))
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda part, on: given.append((part, str(on))),
    )
    share_card("auto", 4)
    assert given == shares
