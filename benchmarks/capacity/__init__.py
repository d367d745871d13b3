"""Capacity: the queue of one replica, a cluster of replicas under simulated time, and arithmetic.

    queueing.py   `kwise bench queue`: measured latency beside simulated latency, at one replica
    cluster.py    `kwise bench cluster`: routers, autoscaling and the loss of a replica, simulated
    machines.py   `kwise bench capacity`: how many machines a load needs, by arithmetic

The simulation runs kwise's own policy, prompt cache, reward cache and admission on simulated time.
Only the model's pass is replaced, by a number of seconds (`pass_time.py`). docs/capacity.md has the
formulas and the results.
"""
