"""The statistics of an engine: totals, times and histograms."""
