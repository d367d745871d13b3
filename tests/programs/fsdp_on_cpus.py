"""`kwise …` in one of several processes whose weights accelerate shards on CPUs.

accelerate shards on accelerators alone, though PyTorch's FSDP does on CPUs as well. So this process says that it has one; its
device stays the CPU, its backend gloo, and everything else is as `accelerate launch` and its configuration have it.
"""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from kwise.cli import main

PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
sys.exit(main())
