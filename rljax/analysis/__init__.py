"""What one looks at: gradient masses of a method, its plots, the entropy law.

Reads the recipes and records of a run; no training code reads it. A new picture is a
new file here.
"""
