"""The head's chunks: values, gradients and memory, against plain float64 autograd over whole logits."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_processing import head as head_module
from sequence_processing.distribution import Policy
from sequence_processing.head import Head, measure

N, H, V = 23, 16, 300

FINISHES = {
    "nothing": lambda x: x,
    "scale": lambda x: x * 0.7,
    "soft-cap": lambda x: torch.tanh(x / 5.0) * 5.0,
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks of 4 rows; tiles of 8 tokens times 7 of the vocabulary, neither of which divides evenly."""
    monkeypatch.setattr("sequence_processing.distribution.BLOCK_ELEMENTS", 4 * V)
    monkeypatch.setattr(head_module, "TILE_TOKENS", 8)
    monkeypatch.setattr(head_module, "TILE_ELEMENTS", 8 * 7)
    monkeypatch.setattr(head_module, "SLICE_ELEMENTS", 11 * H)


def problem(dtype=torch.float32, bias=True, spread=1.0, n=N):
    """A head, hidden states, tokens and loss weights; `spread` scales the logits."""
    linear = nn.Linear(H, V, bias=bias)
    with torch.no_grad():
        linear.weight.normal_(0, spread / 4)
    hidden = torch.randn(n, H).to(dtype).requires_grad_()
    return SimpleNamespace(
        linear=linear.to(dtype), hidden=hidden, tokens=torch.randint(V, (n,)), g_lp=torch.randn(n), g_H=torch.randn(n)
    )


def loss_of(logprobs, entropies, p):
    return (p.g_lp.to(logprobs.dtype) * logprobs).sum() + (p.g_H.to(logprobs.dtype) * entropies).sum()


def ours(p, finish, dtype="auto", module=None):
    """Measurements, and gradients by hidden states, weight and bias."""
    m = measure(Head(module or p.linear, finish, dtype), p.hidden, p.tokens, Policy(0.7, 0.9), V)
    loss_of(m.logprobs, m.entropies, p).backward()
    return m, [p.hidden.grad, *(x.grad for x in p.linear.parameters())]


def whole(p, finish):
    """log p [n, V] and the gradients, in float64 throughout."""
    hidden, *params = (x.detach().double().requires_grad_() for x in (p.hidden, *p.linear.parameters()))
    log = finish(nn.functional.linear(hidden, *params)).log_softmax(-1)
    loss_of(log[range(len(p.tokens)), p.tokens], -(log.exp() * log).sum(-1), p).backward()
    return log.detach(), [hidden.grad, *(x.grad for x in params)]


def distance(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.usefixtures("small_tiles")
class TestGradients:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("spread", [0.1, 12.0])  # flat, and peaked: logits over a range of more than 50
    @pytest.mark.parametrize("finish", FINISHES)
    def test_against_float64(self, finish, spread, bias):
        p = problem(spread=spread, bias=bias)
        m, gradients = ours(p, FINISHES[finish])
        log, want = whole(p, FINISHES[finish])
        assert len(gradients) == len(want) == 2 + bias
        assert max(map(distance, gradients, want)) <= 1e-5
        torch.testing.assert_close(m.logprobs.double(), log[range(N), p.tokens], atol=1e-4, rtol=0)
        torch.testing.assert_close(m.entropies.double(), -(log.exp() * log).sum(-1), atol=1e-4, rtol=0)
        assert not m.sampling_logprobs.requires_grad and not m.sampling_entropies.requires_grad

    def test_near_certain_tokens(self):
        """Their gradient is all in 1 - p, of which float32 subtraction leaves nothing: it comes from log p.

        Which must then be exact relative to itself.
        """
        p = problem(bias=False)
        with torch.no_grad():
            p.linear.weight[7] = 20 * p.hidden[0] / p.hidden[0].norm() ** 2  # a logit of 20, the others of about 1
        p.hidden = p.hidden.detach()[:1].requires_grad_()
        p.tokens, p.g_lp, p.g_H = torch.tensor([7]), torch.ones(1), torch.zeros(1)
        log, want = whole(p, FINISHES["nothing"])
        assert -1e-5 < log[0, 7] < -1e-8
        _, gradients = ours(p, FINISHES["nothing"])
        assert max(map(distance, gradients, want)) <= 1e-4

    def test_a_token_that_the_head_bans(self):
        """Its logit is -inf; the gradients are those of a head that lacks it."""
        p, rest = problem(), [i for i in range(V) if i != 3]
        p.tokens = torch.where(p.tokens == 3, 4, p.tokens)
        lacking = copy.deepcopy(p)
        lacking.linear.weight, lacking.linear.bias = (nn.Parameter(x.detach()[rest]) for x in p.linear.parameters())
        lacking.tokens = lacking.tokens - (lacking.tokens > 3).long()
        with torch.no_grad():
            p.linear.bias[3] = -torch.inf
        _, want = whole(lacking, FINISHES["nothing"])
        _, (hidden, weight, bias) = ours(p, FINISHES["nothing"])
        assert max(map(distance, (hidden, weight[rest], bias[rest]), want)) <= 1e-5
        assert not weight[3].any() and bias[3] == 0

    def test_of_one_quantity_alone(self):
        for name in ("g_lp", "g_H"):
            p = problem()
            setattr(p, name, torch.zeros(N))
            _, want = whole(p, FINISHES["nothing"])
            assert max(map(distance, ours(p, FINISHES["nothing"])[1], want)) <= 1e-5

    def test_a_frozen_head_passes_the_gradient_on(self):
        p = problem()
        _, want = whole(p, FINISHES["nothing"])
        p.linear.requires_grad_(False)
        _, (hidden, weight, bias) = ours(p, FINISHES["nothing"])
        assert distance(hidden, want[0]) <= 1e-5 and weight is None and bias is None

    def test_no_tokens_carry_the_graph(self):
        p = problem(n=0)
        m, gradients = ours(p, FINISHES["nothing"])
        assert m.logprobs.shape == m.sampling_entropies.shape == (0,)
        assert gradients[0].shape == (0, H) and not gradients[1].any() and not gradients[2].any()


@pytest.mark.usefixtures("small_tiles")
class TestNarrowTypes:
    def test_float32_products_are_exact_and_the_backends_own_are_rounded(self, monkeypatch):
        """Of bfloat16 operands; on a CPU without kernels.

        The gradients are rounded to bfloat16 at the end: 2^-9 of each element.
        """
        monkeypatch.setattr("sequence_processing.head.kernels", lambda: None)
        drifts, errors = {}, {}
        for dtype in ("auto", "float32"):
            torch.manual_seed(0)
            p = problem(torch.bfloat16, spread=4.0)
            m, gradients = ours(p, FINISHES["nothing"], dtype)
            log, want = whole(p, FINISHES["nothing"])
            drifts[dtype] = float((m.logprobs.detach().double() - log[range(N), p.tokens]).abs().max())
            errors[dtype] = max(map(distance, gradients, want))
            assert [g.dtype for g in gradients] == [torch.bfloat16] * 3
        assert drifts["float32"] < 1e-5 < 1e-3 < drifts["auto"]
        assert errors["float32"] <= 2**-9 < errors["auto"] < 2**-5

    def test_without_gradient_as_well(self):
        p = problem(torch.bfloat16, spread=4.0)
        with torch.no_grad():
            m = measure(Head(p.linear, FINISHES["nothing"], "float32"), p.hidden, p.tokens, Policy(), V)
        log, _ = whole(p, FINISHES["nothing"])
        torch.testing.assert_close(m.logprobs.double(), log[range(N), p.tokens], atol=1e-5, rtol=0)


def hooked(linear):
    linear.register_forward_hook(lambda _m, _args, out: out * 0.5)
    return linear, lambda x: x * 0.5


def own_forward(linear):
    plain = linear.forward
    linear.forward = lambda x: plain(x) * 0.5
    return linear, lambda x: x * 0.5


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.5


def subclassed(linear):
    linear.__class__ = Shifted
    return linear, lambda x: x * 0.5


@pytest.mark.usefixtures("small_tiles")
class TestOtherHeads:
    @pytest.mark.parametrize("change", [hooked, own_forward, subclassed])
    def test_what_a_module_does_beside_its_product_is_kept(self, change):
        p = problem()
        module, meant = change(p.linear)
        assert not Head(module, FINISHES["nothing"]).is_linear(p.hidden)
        _, want = whole(p, meant)
        assert max(map(distance, ours(p, FINISHES["nothing"], module=module)[1], want)) <= 1e-5

    def test_autocast_is_kept(self):
        p = problem()
        assert Head(p.linear, FINISHES["nothing"]).is_linear(p.hidden)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not Head(p.linear, FINISHES["nothing"]).is_linear(p.hidden)


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


PEAK = """
import sys, torch
from pathlib import Path
from sequence_processing.distribution import Policy
from sequence_processing.head import Head, measure

def status(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith(name))

torch.set_num_threads(1)
n, h, v = 4096, 32, 50_000
linear, hidden = torch.nn.Linear(h, v, bias=False), torch.randn(n, h, requires_grad=True)
head, tokens = Head(linear, lambda x: x), torch.randint(v, (n,))
measure(head, hidden[:1], tokens[:1], Policy(), v).logprobs.sum().backward()  # whatever is set up once
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
m = measure(head, hidden, tokens, Policy(), v)
(m.logprobs.sum() + m.entropies.sum()).backward()
print((status("VmHWM") - before) / (4 * n * v))
"""


class TestMemory:
    @pytest.mark.usefixtures("small_tiles")
    @pytest.mark.parametrize("way", ["trains", "frozen", "another module", "no gradient"])
    def test_no_logits_beyond_a_block(self, way):
        """Neither forward nor backward: nothing is larger than the weight's 4,800 elements, where N x V is 60,000."""
        p = problem(bias=False, n=200)
        p.linear.requires_grad_(way != "frozen")
        module, _ = subclassed(p.linear) if way == "another module" else (p.linear, None)
        with Largest() as largest:
            if way == "no gradient":
                with torch.no_grad():
                    measure(Head(module, FINISHES["nothing"]), p.hidden, p.tokens, Policy(0.7, 0.9), V)
            else:
                ours(p, FINISHES["nothing"], module=module)
        assert largest.elements <= H * V

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_peak_is_a_fraction_of_one_whole_array_of_logits(self):
        """float32 [4096, 50000]; plain autograd holds about six of them."""
        run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
        assert float(run.stdout) < 1
