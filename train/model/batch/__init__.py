"""The layout of a batch in rows, and the attention between the rows."""
