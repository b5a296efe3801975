"""The curves of runs, as a page and as a picture."""
