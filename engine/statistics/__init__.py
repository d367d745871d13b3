"""What an engine counts, and how it is described: totals, times and histograms."""
