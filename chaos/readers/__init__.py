"""A program that tests one promise: a reader of checkpoints sees each of them as a whole.

``python -m chaos readers --minutes 20`` starts writers and readers of one directory, kills both
with SIGKILL at random moments, and checks that each read returned files and meta of one save.
"""
