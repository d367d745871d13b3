"""One module for each experiment: its cells, and how one cell is measured."""
