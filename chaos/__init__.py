"""A program that tests one promise: a run killed at any moment continues bit for bit.

``python -m chaos --kills 1000`` starts small trainings over a matrix of settings, kills them with
SIGKILL at random moments, starts them again, and compares everything that they did with an
undisturbed training. Half of the settings use callbacks and several loggers.
"""
