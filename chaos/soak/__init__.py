"""A program that tests one promise: a run that lasts for days takes no more memory than one hour.

``python -m chaos soak --minutes 30`` trains, saves, validates and evaluates again and again in one
process, with a reader beside it, and measures whether memory, threads, open files, processes or
files on disk grow.
"""
