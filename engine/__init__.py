"""The serving engine: scores the responses in requests with the model of an artifact.

It imports neither torch nor transformers.
"""
