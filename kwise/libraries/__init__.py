"""Calls of other libraries: their errors, their output, how to install them."""
