"""The plots of the page, each a function of an evaluation that returns a `Plot`."""
