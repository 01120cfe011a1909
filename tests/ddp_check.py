"""Run by test_torch.test_distributed under torchrun: DDP's gradients are those of the whole
batch."""

import gc
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # noqa: F401  (before there is a group: its functions' defaults would hold it)
from torch.nn.parallel import DistributedDataParallel

from smm_py.torch import SlotMixture

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
module = SlotMixture(dim=8, num_slots=3, norm_kv=True, start="inputs", gradient="full")
x, log_std = torch.randn(4, 10, 8), torch.zeros(4, 3, 8)
init = {"indices": torch.arange(3).expand(4, 3).contiguous(), "log_std": log_std}
(module(x, init) ** 2).mean().backward()
expected = [p.grad.clone() for p in module.parameters() if p.grad is not None]
module.zero_grad()
for p in (module.logstd_mu, module.logstd_logsigma):  # not drawn from here, as `init` is given
    p.requires_grad_(False)
parallel = DistributedDataParallel(module)
half = slice(2 * rank, 2 * rank + 2)
(parallel(x[half], {k: v[half] for k, v in init.items()}) ** 2).mean().backward()
got = [p.grad for p in module.parameters() if p.grad is not None]
assert len(got) == len(expected) > 15
assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(expected, got))
print("same gradients")
dist.barrier()
del parallel  # it holds the group, whose threads may abort the interpreter's end
dist.destroy_process_group()
gc.collect()
threads = [
    Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")
]  # none but on Linux
assert not any("gloo" in name for name in threads), threads
