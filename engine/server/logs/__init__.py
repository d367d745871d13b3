"""The log: its form, a line per call if asked for, and summaries of refused and slow calls."""
