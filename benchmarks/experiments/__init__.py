"""The experiments behind what kwise claims about rankings; docs/evidence.md tells their results."""
