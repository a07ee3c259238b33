"""Measurements of a trained model: bits per byte, what the memory is worth, recall; each with its
interval."""
