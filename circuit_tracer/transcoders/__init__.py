"""Transcoders: sparse stand-ins for a model's MLPs."""
