"""Functions on tensors, without parameters: `reference.py` defines each by loops, the other files are fast
forms."""
