"""Run `kwise …` in one of several processes whose weights accelerate shards on CPUs.

accelerate shards on accelerators only, although PyTorch's FSDP works on CPUs too. So this process
claims to have one. Its device stays the CPU, its backend gloo, and everything else is as
`accelerate launch` and its configuration set it.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from kwise.cli import main

PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
sys.exit(main())
