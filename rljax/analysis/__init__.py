"""What one looks at: gradient masses of a method, its plots, the entropy law.

It reads recipes and the records of a run; no training code imports it. A new picture is
a new file here.
"""
