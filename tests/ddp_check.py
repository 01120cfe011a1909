"""For test_torch.test_distributed, under torchrun: DDP's gradients are the whole batch's.

`init` is always given, so that nothing is drawn from the parameters of the initial state.
"""

import contextlib
import gc
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  (later, its defaults would hold the group)
from torch.nn.parallel import DistributedDataParallel

from smm_py.torch import SlotAttention, SlotMixture, force_lean

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
module = SlotMixture(dim=8, num_slots=3, norm_kv=True, start="inputs", gradient="full")
x, log_std = torch.randn(4, 10, 8), torch.zeros(4, 3, 8)
init = {"indices": torch.arange(3).expand(4, 3).contiguous(), "log_std": log_std}
(module(x, init) ** 2).mean().backward()
expected = [p.grad.clone() for p in module.parameters() if p.grad is not None]
parallel = DistributedDataParallel(module)
half = slice(2 * rank, 2 * rank + 2)
for _ in range(3):  # DDP waits in the second for gradients that the first lacked
    module.zero_grad()
    (parallel(x[half], {k: v[half] for k, v in init.items()}) ** 2).mean().backward()
got = [p.grad for p in module.parameters() if p.grad is not None]
assert len(got) == len(expected) > 15
assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, got))
assert not module.logstd_mu.grad.any() and module.mean_mu.grad is None  # which is not trained
for lean in (False, True):  # as on a GPU; drawn states get no gradient from the last step alone
    other = DistributedDataParallel(SlotAttention(dim=8, num_slots=3))
    with force_lean() if lean else contextlib.nullcontext():
        for _ in range(3):
            other(x[half]).square().mean().backward()
print("same gradients")
del other
dist.barrier()
del parallel  # it holds the group, whose threads may abort the interpreter's end
dist.destroy_process_group()
gc.collect()
tasks = Path("/proc/self/task").glob("*")  # none but on Linux
threads = [Path(task, "comm").read_text().strip() for task in tasks]
assert not any("gloo" in name for name in threads), threads
