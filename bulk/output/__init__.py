"""The forms of the output, and the files that it goes to."""
