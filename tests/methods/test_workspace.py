"""What a plan counts for whole tensors is what methods take: each is called once in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxsmith.methods import METHODS

_CALL = """
import sys
from pathlib import Path
import torch
from fluxsmith.methods import METHODS

def kernel(field):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

torch.set_num_threads(1)
torch.linalg.svd(torch.randn(64, 64)); torch.linalg.eigh(torch.eye(64)); torch.linalg.qr(torch.eye(64)); torch.eye(64) @ torch.eye(64)
torch.fft.rfftn(torch.eye(64))
name, rows, columns, count = sys.argv[1], *map(int, sys.argv[2:5])
method = METHODS[name]
inputs = [torch.randn(rows, columns) for _ in range(count)]
options = {"weights": (1.0,) * (count - 1)} if "weights" in method.options else {}
options |= {"density": (0.5,) * (count - 1)} if name == "knots_ties" else {}
options |= {"steps": 2} if name == "wudi" else {}
options |= {"masks": None} if method.random else {}
options |= {"grams": [x.mT @ x for x in inputs], "weights": (1.0,) * count} if name == "regmean" else {}
Path("/proc/self/clear_refs").write_text("5")
before = kernel("VmRSS")
with torch.inference_mode():
    result = method.function(*inputs, **options)
print((kernel("VmHWM") - before) / 4)
"""

CASES = {
    "regmean": 2,
    "tsv_merge": 3,
    "knots_ties": 3,
    "iso_c": 3,
    "iso_cts": 3,
    "wudi": 3,
    "rotate": 2,
    "subspace_boost": 1,
    "truncate_rank": 1,
    "truncate_kronecker": 1,
    "crossover": 2,
    "tensor_sum": 2,
    "top_k_tensor_sum": 2,
}
OWN = 8e6 / 4  # elements: what LAPACK keeps for itself, and the rounding of the kernel's counters


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own account of memory")
@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("shape", [(768, 768), (512, 1536)])
def test_workspace_is_what_is_taken(method: str, shape: tuple[int, int]) -> None:
    command = [sys.executable, "-c", _CALL, method, *map(str, shape), str(CASES[method])]
    alone = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed matrices of this size leave no holes in the heap
    taken = float(subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout)
    workspace = METHODS[method].workspace
    assert workspace is not None
    planned = workspace(*shape, CASES[method])
    assert taken < planned * 1.1 + OWN
    assert planned < taken * 1.3 + OWN
