"""Makes a process compute the same bits from the same inputs.

Left out on purpose: another number of threads, another kind of device or another release of torch may sum in
another order, so runs are equal on one machine and with one `learner.threads`.
"""

import os

import torch


def make_deterministic() -> None:
    """Deterministic kernels, for this process from now on.

    Call it before the first product on a GPU: cuBLAS reads its workspace setting once. An operation of
    which torch has no deterministic form then raises RuntimeError.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
