"""Score single responses with their prompts, for protocols that have no groups.

`sample.py` says what a sample is, `scoring.py` groups samples by prompt and scores them, and
`scores.py` makes the numbers that such protocols report. It knows no protocol.
"""
