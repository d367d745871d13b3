"""The Open Inference Protocol (KServe v2) on top of `RewardService`.

`tensors.py` has the table of inputs and outputs and reads their contents. `request.py` makes a
group of the inputs, and `reply.py` makes outputs of the rewards. `description.py` describes the
model in Triton's terms. `service.py` has the rpcs.
"""
