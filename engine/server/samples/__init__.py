"""Score single responses with their prompts, for protocols that have no groups.

`sample.py` defines a sample, `scoring.py` groups samples by prompt and scores them, and `scores.py`
converts rewards to the numbers that such protocols report. None of them depends on a protocol.
"""
