"""Measurements of a trained model: bits per byte, what the memory is worth, recall, speed; each with its
interval."""
