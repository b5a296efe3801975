"""A machine that tries to break one sentence: a run killed anywhere continues bit for bit.

``python -m chaos --kills 1000`` starts small trainings over a matrix of settings, kills them with
SIGKILL at random moments, starts them again, and compares all that they did with a training that
nobody disturbed.
"""
