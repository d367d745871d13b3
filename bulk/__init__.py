"""Scoring of whole files: read rows, score their groups in windows, write in the input's order."""
