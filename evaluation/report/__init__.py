"""Reports of an evaluation: JSON, a table, an HTML page."""
