"""Row kernels: compiled, in blocks and whole, the same numbers."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from trainer.cpu import row_kernel
from trainer.cpu.allocator import VARIABLES
from trainer.cpu.row_kernel import RowKernel, compile_kernels
from trainer.mla import _Rotate
from trainer.norm import rms_norm
from trainer.scorer import LOGITS, LogitShape, _TokenLogprobs
from trainer.swiglu import swiglu

pytestmark = pytest.mark.process

CPU = torch.device("cpu")


@RowKernel
def _double(x_TD: Tensor, out_TD: Tensor) -> Tensor:
    out_TD.copy_(2 * x_TD)
    return x_TD.sum(0)


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_blocks_give_what_one_pass_gives(rows, monkeypatch):
    monkeypatch.setattr(row_kernel, "BLOCK", 7 * 16)
    x_TD = torch.arange(rows * 16.0).view(rows, 16)
    out_TD = torch.empty_like(x_TD)
    total_D = _double(x_TD, out_TD)
    assert total_D is not None and torch.equal(total_D, x_TD.sum(0))
    assert torch.equal(out_TD, 2 * x_TD)


def test_a_missing_compiler_is_said_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(row_kernel, "_compiled", False)
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(
            ValueError, match=r"learner\.compile needs a C\+\+ compiler .*: install g\+\+"
        ),
    ):
        compile_kernels(CPU)
    assert not row_kernel._compiled


def turn(x_THD: Tensor, angle_TR: Tensor) -> Tensor:
    """A rotary embedding of the last columns."""
    out = _Rotate.apply(x_THD, angle_TR.detach().cos(), angle_TR.detach().sin())
    assert isinstance(out, Tensor)
    return out + 0 * angle_TR.sum()


def logprobs(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
    """Of one token after the other."""
    target_N = torch.arange(len(hidden_ND)) % len(head_VD)
    return _TokenLogprobs.apply(hidden_ND, head_VD, target_N, LogitShape(0.7))[0]  # pyright: ignore


def bent_logprobs(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
    """With a scale and a soft cap."""
    target_N = torch.arange(len(hidden_ND)) % len(head_VD)
    shape = LogitShape(0.7, scale=0.5, softcap=30.0)
    return _TokenLogprobs.apply(hidden_ND, head_VD, target_N, shape)[0]  # pyright: ignore


# Function, and the shapes of what it is given but for their first dimension; None: as it stands.
CASES: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int | None, ...], ...]]] = {
    "swiglu": (swiglu, ((None, 256), (None,))),
    "rms_norm": (lambda x, w: rms_norm(x, w, 1e-5), ((None, 96), (96,))),
    "rms_norm_of_a_part": (lambda x, w: rms_norm(x[:, :96], w, 1e-5), ((None, 160), (96,))),
    "turn": (turn, ((None, 4, 96), (None, 32))),
    "turn_all": (turn, ((None, 1, 64), (None, 32))),
    "logprobs": (logprobs, ((None, 64), (500, 64))),
    "bent_logprobs": (bent_logprobs, ((None, 64), (500, 64))),
}


@pytest.mark.compiler
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_compiled_kernels_give_the_same_values_and_gradients(case, dtype, monkeypatch):
    function, shapes = CASES[case]
    draw = torch.Generator().manual_seed(0)
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    monkeypatch.setattr(row_kernel, "_compiled", False)
    monkeypatch.setitem(LOGITS, "cpu", 1 << 20)  # several chunks
    torch._dynamo.reset()  # the graphs of other tests
    graphs = []
    # Lengths differ from batch to batch; the short ones are not compiled, and the others share a graph (a sum
    # over more than 4,096 rows has a second one).
    for rows in (0, 1, 77, 3900, 3100, 2900):
        sizes = [[rows if n is None else n for n in shape] for shape in shapes]
        given = [torch.randn(size, generator=draw) for size in sizes]
        given[0] = given[0].to(dtype)
        if function in (logprobs, bent_logprobs):
            given[1] = given[1].to(dtype)
        plain = values_and_gradients(function, given)
        compile_kernels(CPU)
        compiled = values_and_gradients(function, given)
        graphs.append(counters["stats"]["unique_graphs"])
        monkeypatch.setattr(row_kernel, "_compiled", False)
        for found, wanted in zip(compiled, plain, strict=True):
            scale = max(1e-6, wanted.abs().max().item()) if wanted.numel() else 1.0
            torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=close)
    assert graphs[2] < graphs[3] == graphs[4] == graphs[5]


def values_and_gradients(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """What it gives, and the gradient of the sum of its squares."""
    inputs = [x.clone().requires_grad_() for x in given]
    out = function(*inputs)
    grads = torch.autograd.grad(out.float().square().sum(), inputs)
    return [out.detach(), *grads]


FAULTS = """
import resource
import sys
import threading
import torch
from trainer.cpu.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def main():
    torch.ones(4)
    if sys.argv[1] == "keep":
        keep_freed_memory()
    # The first rounds find out how much is needed.
    print([faults() for _ in range(8)][-1])

if sys.argv[2] == "thread":
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
else:
    main()
"""


@pytest.mark.slow  # two processes, each of which imports torch
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is set")
@pytest.mark.parametrize(("where", "variables"), [("main", {}), ("thread", VARIABLES)])
def test_freed_memory_stays_with_the_process(where, variables):
    def faults(how: str, variables: dict[str, str]) -> int:
        command = [sys.executable, "-c", FAULTS, how, where]
        environment = os.environ | variables
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        return int(ended.stdout)

    assert faults("keep", variables) < 100 < 1000 < faults("give back", {})
