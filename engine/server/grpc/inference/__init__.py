"""The Open Inference Protocol (KServe v2) on top of `RewardService`.

`tensors.py` has the table of inputs and outputs and reads their contents. `request.py` converts the
inputs to a group, and `reply.py` converts the rewards to outputs. `description.py` describes the
model in Triton's terms. `service.py` implements the RPCs.
"""
