"""Analysis of methods and runs.

    profile      gradient masses of a method, computed from its advantage chain
    plot         figures of them
    entropy_law  the law of entropy and performance, fitted to a run

It reads recipes and the records of a run; no training code imports it. Add a figure as
a new file here.
"""
