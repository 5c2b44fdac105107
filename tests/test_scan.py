"""The selective scan: every backend against a loop in numpy, written here, and its invariants."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from iumad.errors import ConfigError
from iumad.models.scan import INSTALLED, RUN, fastest, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not CUDA
TRITON = [pytest.mark.gpu, pytest.mark.skipif(not CUDA and not INTERPRETED, reason="needs CUDA")]
BIG = pytest.mark.skipif(not CUDA, reason="too large for the interpreter")
MAMBA_SSM = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CUDA or not INSTALLED["mamba-ssm"], reason="needs CUDA and mamba-ssm"),
]


def device_of(backend):
    return "cuda" if CUDA and backend in ("triton", "mamba-ssm") else "cpu"


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(u, delta, A, B, C, D, z, delta_bias, gout, gated=True):
    """Values and gradients of sum(out · gout), by loops over time in float64, softplus on.

    B, C: batch × group × state × length. The gradients follow the chain rule by hand.
    """
    batch, dim, length = u.shape
    groups, state = B.shape[1:3]
    spread = np.repeat(np.arange(groups), dim // groups)  # channel -> group
    raw = delta + delta_bias[:, None]
    step = softplus(raw)
    h = np.zeros((length + 1, batch, dim, state))
    y = np.empty((batch, dim, length))
    for t in range(length):
        decay = np.exp(step[:, :, t, None] * A)
        h[t + 1] = decay * h[t] + (step * u)[:, :, t, None] * B[..., t][:, spread]
        y[:, :, t] = (C[..., t][:, spread] * h[t + 1]).sum(-1) + D * u[:, :, t]
    gate = z * sigmoid(z) if gated else np.ones_like(z)
    gy = gout * gate
    gz = gout * y * (sigmoid(z) + gate * (1 - sigmoid(z)))
    gu, gstep = gy * D[:, None], np.zeros_like(u)
    gA, gB, gC = np.zeros_like(A), np.zeros_like(B), np.zeros_like(C)
    gh = np.zeros((batch, dim, state))
    for t in reversed(range(length)):
        gh = gh + gy[:, :, t, None] * C[..., t][:, spread]
        gx = (gh * B[..., t][:, spread]).sum(-1)
        gu[:, :, t] += gx * step[:, :, t]
        gstep[:, :, t] += gx * u[:, :, t]
        for g in range(groups):
            of_group = spread == g
            gB[:, g, :, t] = (gh * (step * u)[:, :, t, None])[:, of_group].sum(1)
            gC[:, g, :, t] = (gy[:, :, t, None] * h[t + 1])[:, of_group].sum(1)
        gh = gh * np.exp(step[:, :, t, None] * A)
        gexponent = gh * h[t]
        gstep[:, :, t] += (gexponent * A).sum(-1)
        gA += (gexponent * step[:, :, t, None]).sum(0)
    gdelta = gstep * sigmoid(raw)
    gD = (gy * u).sum((0, 2))
    return y * gate, (gu, gdelta, gA, gB, gC, gD, gz, gdelta.sum((0, 2)))


def draw(batch, dim, length, state, groups=1, low=1e-3, high=1e-1, seed=0):
    """Inputs as in a fresh Mamba block, their step sizes between `low` and `high`, in float64."""
    rng = np.random.default_rng(seed)
    step = np.exp(rng.uniform(np.log(low), np.log(high), (batch, dim, length)))
    delta_bias = rng.normal(size=dim)
    raw = step + np.log(-np.expm1(-step))  # inverse of softplus
    return (
        rng.normal(size=(batch, dim, length)),
        raw - delta_bias[:, None],
        -np.tile(np.arange(1.0, state + 1), (dim, 1)) * rng.uniform(0.8, 1.2, (dim, state)),
        rng.normal(size=(batch, groups, state, length)),
        rng.normal(size=(batch, groups, state, length)),
        rng.normal(size=dim),
        rng.normal(size=(batch, dim, length)),
        delta_bias,
    )


def tensors(arrays, dtype=torch.float32, device="cpu"):
    return [torch.tensor(x, dtype=dtype, device=device, requires_grad=True) for x in arrays]


def assert_close(got, want, name, tolerance):
    """Largest error beside the largest value: sums over time cancel in single entries."""
    got = got.detach().cpu().double().numpy()
    atol = tolerance * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


SHAPES = [
    # batch, dim, length, state, groups, low, high
    (1, 1, 1, 1, 1, 1e-3, 1e-1),
    (2, 5, 49, 16, 1, 1e-3, 1e-1),
    (2, 33, 49, 8, 3, 1e-3, 1e-1),
    (1, 17, 196, 16, 1, 1e-3, 6.0),
    (3, 6, 51, 1, 2, 1e-1, 6.0),
    (1, 4, 784, 16, 1, 1e-3, 1e-1),
    (1, 32, 23, 3, 2, 5.0, 6.0),
]


@pytest.mark.strict
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        # float32: rounding errors of single steps, eps = 1.2e-7, that add up over time and channels
        ("cpu", torch.float32, 2e-6),
        ("reference", torch.float32, 2e-6),
        ("cpu", torch.float64, 1e-13),
        ("reference", torch.float64, 1e-13),
        ("vectorised", torch.float32, 2e-6),
        ("vectorised", torch.float64, 1e-13),
        pytest.param("mamba-ssm", torch.float32, 1e-5, marks=MAMBA_SSM),
    ],
)
def test_values_and_gradients_agree_with_a_loop_in_float64(backend, dtype, tolerance, shape):
    compare_with_oracle(backend, dtype, tolerance, shape)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=TRITON)])
@pytest.mark.parametrize(
    ("shape", "dtype", "gated"),
    [
        ((1, 1, 1, 1, 1), torch.float32, False),
        ((2, 5, 16, 16, 1, 1e-3, 6.0), torch.float32, True),
        ((1, 2, 49, 3, 1), torch.bfloat16, False),
        ((1, 4, 50, 2, 2), torch.float32, False),
        ((1, 33, 5, 2, 1), torch.bfloat16, True),  # the last block of channels has one
        pytest.param((1, 2, 196, 2, 1), torch.float32, True, marks=pytest.mark.slow),
        pytest.param((2, 66, 196, 16, 2), torch.float32, True, marks=BIG),
        pytest.param((1, 32, 4096, 16, 1), torch.float32, False, marks=BIG),
        pytest.param((24, 2048, 49, 16, 4), torch.bfloat16, False, marks=BIG),
    ],
    ids=str,
)
def test_triton_agrees_with_a_loop_in_float64(backend, shape, dtype, gated):
    # bfloat16: outputs and gradients are cut to 8 bits of mantissa when they are stored
    tolerance = 5e-6 if dtype == torch.float32 else 2**-7
    compare_with_oracle(backend, dtype, tolerance, shape, gated)


def compare_with_oracle(backend, dtype, tolerance, shape, gated=True):
    arrays = draw(*shape)
    gout = np.random.default_rng(1).normal(size=arrays[0].shape)
    # both computations start from the same, possibly rounded, numbers
    inputs = tensors(arrays, dtype, device_of(backend))
    rounded = [x.detach().cpu().double().numpy() for x in inputs]
    gout_tensor = torch.tensor(gout, dtype=dtype, device=inputs[0].device)
    out, gradients = oracle(*rounded, gout_tensor.double().cpu().numpy(), gated)
    if not gated:
        inputs[6] = None
    result = selective_scan(*inputs, True, backend=backend)
    assert result.dtype == dtype
    assert_close(result, out, "out", tolerance)
    result.backward(gout_tensor)
    for name, tensor, gradient in zip(NAMES, inputs, gradients, strict=True):
        if tensor is not None and tensor.grad is None:
            assert name == "A" and shape[2] == 1  # without an earlier state nothing decays
        elif tensor is not None:
            assert_close(tensor.grad, gradient, name, tolerance)


@pytest.mark.parametrize("backend", ["reference", "vectorised", "cpu"])
def test_two_steps_by_hand(backend):
    # Δ = 1, exp(ΔA) = 1/2, B = 1, C = 2, D = 3: h = 4, 1/2·4 + 6 = 8; y = 2·4 + 3·4, 2·8 + 3·6
    one = torch.ones(1, 1, 2)
    out = selective_scan(
        torch.tensor([[[4.0, 6.0]]]),
        one,
        torch.tensor([[0.5]]).log(),
        one,
        2 * one,
        torch.tensor([3.0]),
        backend=backend,
    )
    torch.testing.assert_close(out, torch.tensor([[[20.0, 34.0]]]))


@pytest.mark.parametrize("delta_softplus", [False, True])
@pytest.mark.parametrize("backend", ["reference", "vectorised", "cpu"])
def test_gradcheck(backend, delta_softplus):
    arrays = list(draw(2, 4, 5, 3, groups=2))
    if not delta_softplus:
        arrays[1], arrays[7] = np.abs(arrays[1]), np.abs(arrays[7])

    def scan(*x):
        return selective_scan(*x, delta_softplus, backend=backend)

    assert torch.autograd.gradcheck(scan, tensors(arrays, torch.float64))


@pytest.mark.parametrize("backend", ["reference", "vectorised", "cpu"])
def test_optional_arguments_equal_their_neutral_values(backend):
    u, delta, A, B, C, *_ = tensors(draw(2, 5, 7, 4), torch.float64)
    zeros = torch.zeros(5, dtype=torch.float64)
    bare = selective_scan(u, delta.exp(), A, B, C, backend=backend)
    full = selective_scan(u, delta.exp(), A, B, C, zeros, None, zeros, backend=backend)
    torch.testing.assert_close(bare, full, rtol=0, atol=0)
    without_group_axis = selective_scan(u, delta.exp(), A, B[:, 0], C[:, 0], backend=backend)
    torch.testing.assert_close(bare, without_group_axis, rtol=0, atol=0)


def test_groups_equal_separate_scans():
    u, delta, A, B, C, D, _, bias = tensors(draw(2, 34, 9, 4, groups=2))
    both = selective_scan(u, delta, A, B, C, D, None, bias, True, backend="cpu")
    for g, part in enumerate((slice(0, 17), slice(17, 34))):
        channels = (u[:, part], delta[:, part], A[part], B[:, g], C[:, g])
        alone = selective_scan(*channels, D[part], None, bias[part], True, backend="cpu")
        torch.testing.assert_close(both[:, part], alone, rtol=0, atol=0)


def test_scan_is_causal_and_linear_in_u():
    u, delta, A, B, C, D, z, bias = tensors(draw(1, 8, 20, 4))
    rest = (delta, A, B, C, D, z, bias, True)
    changed = u.detach().clone()
    changed[:, :, 12:] += 1
    out, other = selective_scan(u, *rest), selective_scan(changed, *rest)
    torch.testing.assert_close(out[..., :12], other[..., :12], rtol=0, atol=0)
    assert not torch.equal(out[..., 12:], other[..., 12:])
    torch.testing.assert_close(selective_scan(2 * u, *rest), 2 * out, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "vectorised", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    low = tensors(draw(2, 5, 30, 4), dtype)
    wide = [x.detach().float() for x in low]
    result = selective_scan(*low, True, backend=backend)
    assert result.dtype == dtype
    want = selective_scan(*wide, True, backend=backend)
    torch.testing.assert_close(result, want.to(dtype), rtol=0, atol=0)
    result.sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in low)


@pytest.mark.parametrize("backend", ["reference", "vectorised", "cpu"])
def test_autocast_changes_nothing_but_the_dtype_of_half_inputs(backend):
    inputs = tensors(draw(2, 5, 30, 4))
    plain = selective_scan(*inputs, True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = selective_scan(*inputs, True, backend=backend)
        half_u = selective_scan(inputs[0].bfloat16(), *inputs[1:], True, backend=backend)
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)
    assert half_u.dtype == torch.bfloat16


def test_memory_layout_does_not_matter():
    inputs = tensors(draw(3, 18, 21, 4, groups=2))
    strided = [
        x.detach().movedim(-1, 0).contiguous().movedim(0, -1).requires_grad_() for x in inputs
    ]
    assert not strided[0].is_contiguous()
    gout = torch.ones(21, 18, 3).movedim(0, -1).movedim(0, 1)
    for x in (inputs, strided):
        selective_scan(*x, True, backend="cpu").backward(gout)
    for a, b in zip(inputs, strided, strict=True):
        # not bit for bit: torch's silu rounds differently in strided memory
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-6)


def test_nan_and_inf_are_not_hidden():
    inputs = tensors(draw(1, 3, 10, 2))
    for name, x in zip(NAMES, inputs, strict=True):
        spoilt = x.detach().clone()
        spoilt.view(-1)[0] = torch.nan
        given = [spoilt if n == name else y for n, y in zip(NAMES, inputs, strict=True)]
        assert selective_scan(*given, True, backend="cpu").isnan().any(), name
    growing = selective_scan(*inputs[:2], -1e3 * inputs[2], *inputs[3:5], backend="reference")
    compiled = selective_scan(*inputs[:2], -1e3 * inputs[2], *inputs[3:5], backend="cpu")
    torch.testing.assert_close(growing.isfinite(), compiled.isfinite())


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
def test_results_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(threads)
        inputs = tensors(draw(3, 40, 49, 5))
        out = selective_scan(*inputs, True, backend="cpu")
        out.square().sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("restore_threads")
def test_calls_from_several_threads_at_once():
    torch.set_num_threads(2)
    inputs = [x.detach() for x in tensors(draw(2, 40, 30, 4))]
    want = selective_scan(*inputs, True, backend="cpu")
    wrong = []

    def call():
        for _ in range(20):
            if not torch.equal(selective_scan(*inputs, True, backend="cpu"), want):
                wrong.append(threading.get_ident())

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


IN_A_NEW_PROCESS = """
import os, sys, torch
from iumad.models.scan import selective_scan
assert "numba" not in sys.modules, "numba slows the import down"

torch.set_num_threads(2)
x = torch.ones(2, 40, 9)
arguments = [x, x, -torch.ones(40, 4), torch.ones(2, 4, 9), torch.ones(2, 4, 9)]
want = selective_scan(*arguments, backend="cpu")
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(selective_scan(*arguments, backend="cpu"), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "failed after a fork"

# aot_eager: the whole of torch.compile but the code generator, which needs a C++ compiler
compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
for x in arguments:
    x.requires_grad_()
outs = selective_scan(*arguments), compiled(*arguments)
assert torch.equal(*outs), "another result under torch.compile"
for a, b in zip(*(torch.autograd.grad(out.square().sum(), arguments) for out in outs)):
    torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
def test_triton_in_the_interpreter():
    """What needs a card, on the CPU: Triton decides at import whether it compiles or interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-n0", "-k", "triton_agrees"]
    command += ["-m", "not slow", "-o", "addopts=--strict-markers"]  # without checks of types
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or not INSTALLED["triton"], reason="needs Triton's compiler")
@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")  # Triton's, on Python 3.13
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_triton_kernels_compile_without_a_card(name, capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from iumad.models.scan import triton as kernels

    kernel = getattr(kernels, name)
    fixed = {"SOFTPLUS": True, "GATED": True, "BLOCK": 16, "STATES": 16}
    half = {"gout", "u", "delta", "B", "C", "z", "y", "gu", "gdelta", "gz"}
    types = {"dim": "i32", "length": "i32", "groups": "i32", "states": "i32"}
    types |= dict.fromkeys(fixed, "constexpr") | dict.fromkeys(half, "*bf16")
    signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
    places = {(kernel.arg_names.index(argument),): value for argument, value in fixed.items()}
    source = ASTSource(kernel, signature, places)
    binary = triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 1})
    assert binary.asm["cubin"]


@pytest.mark.slow
def test_late_import_fork_and_torch_compile():
    # a new process, because run-time checks of annotations hide the code from torch.compile
    subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], check=True, timeout=600)


def test_second_derivatives_are_refused_where_there_are_none():
    u, *rest = tensors(draw(1, 2, 3, 1))
    out = selective_scan(u, *rest, True, backend="cpu").square().sum()
    (gradient,) = torch.autograd.grad(out, u, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='vectorised'"):
        gradient.sum().backward()


# from opcheck itself, which looks at the gradients of tensors that it has derived from ours
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_operator_follows_the_rules_of_torch():
    u, delta, A, B, C, D, z, bias = tensors(draw(2, 5, 6, 3))
    for gate in (None, z):
        torch.library.opcheck(
            torch.ops.iumad.selective_scan.default, (u, delta, A, B, C, D, gate, bias, True)
        )


def test_auto_chooses_by_device_and_dtype(monkeypatch):
    used = []
    for name in RUN:
        monkeypatch.setitem(RUN, name, lambda u, *_, name=name: used.append(name) or u)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        selective_scan(*tensors(draw(1, 2, 3, 1), dtype))
    assert used == ["cpu", "cpu", "reference"]


def test_the_faster_backend_is_found_forward_and_backward(monkeypatch):
    def slow(u, *rest):
        time.sleep(0.01)
        return RUN["vectorised"](u, *rest)

    monkeypatch.setitem(RUN, "triton", slow)
    state = torch.get_rng_state()
    with torch.inference_mode():
        size = (torch.device("cpu"), torch.float32, torch.Size([1, 2, 3]), 1)
        assert fastest(("triton", "vectorised"), *size) == "vectorised"
    assert torch.equal(torch.get_rng_state(), state)


def test_an_exported_scan_has_plain_operators_only():
    class Scan(torch.nn.Module):
        def forward(self, *x):
            return selective_scan(*x, True)

    inputs = tuple(x.detach() for x in tensors(draw(2, 6, 49, 4, groups=2)))
    exported = torch.export.export(Scan(), inputs)
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "iumad" in name]
    assert len(called) < 100  # 6 rounds of doubling, not 49 steps
    torch.testing.assert_close(exported.module()(*inputs), Scan()(*inputs), rtol=1e-5, atol=1e-5)


def test_a_missing_backend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(INSTALLED, "mamba-ssm", False)
    with pytest.raises(ConfigError, match=r"mamba-ssm.*iumad\[cuda\]"):
        selective_scan(*tensors(draw(1, 2, 3, 1)), backend="mamba-ssm")


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(ConfigError, match="'triton' needs tensors on cuda, got cpu"):
        selective_scan(*tensors(draw(1, 2, 3, 1)), backend="triton")


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match="auto, cpu, triton, mamba-ssm, vectorised, reference, got 'gpu'"
    ):
        selective_scan(*tensors(draw(1, 2, 3, 1)), backend="gpu")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 4), r"u needs shape \(batch, dim, length ≥ 1\).*got u \(2, 4\)"),
        ("u", (2, 4, 0), r"length ≥ 1.*got u \(2, 4, 0\)"),
        ("A", (5, 3), r"A \(dim, state\), got u \(2, 4, 6\) and A \(5, 3\)"),
        ("delta", (2, 4, 5), r"delta needs shape \(2, 4, 6\), got \(2, 4, 5\)"),
        ("z", (1, 4, 6), r"z needs shape \(2, 4, 6\), got \(1, 4, 6\)"),
        ("D", (3,), r"D needs shape \(4,\), got \(3,\)"),
        ("delta_bias", (4, 1), r"delta_bias needs shape \(4,\), got \(4, 1\)"),
        ("B", (2, 3, 7), r"B needs shape \(2, 3, 6\) or \(2, group, 3, 6\), got \(2, 3, 7\)"),
        ("C", (2, 4, 6), r"C needs shape \(2, 3, 6\).*got \(2, 4, 6\)"),
        ("B", (2, 2, 3, 6), r"one number of groups.*got B \(2, 2, 3, 6\) and C \(2, 1, 3, 6\)"),
    ],
)
def test_wrong_shape_names_argument_need_and_what_came(name, shape, message):
    given = dict(zip(NAMES, tensors(draw(2, 4, 6, 3)), strict=True))
    given[name] = torch.ones(shape)
    with pytest.raises(ValueError, match=message):
        selective_scan(**given)


def test_groups_must_divide_dim():
    u, delta, A, B, C, *_ = tensors(draw(2, 4, 6, 3))
    with pytest.raises(ValueError, match="divides dim 4"):
        selective_scan(u, delta, A, B.expand(2, 3, 3, 6), C.expand(2, 3, 3, 6))


def test_integers_are_refused():
    u, *rest = tensors(draw(1, 2, 3, 1))
    with pytest.raises(TypeError, match=r"u needs a real floating dtype, got torch.int64"):
        selective_scan(u.long(), *rest)
