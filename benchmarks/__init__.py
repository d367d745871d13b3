"""The benchmarks of `kwise bench`.

Each module states its question and the physics that limit the answer. All ratios are between
figures of one run, because the speed of a machine varies between runs. `results/` has results by
model and hardware, with the command, the machine and the versions that produced them.
"""
