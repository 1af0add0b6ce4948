"""How well transcoders stand in for a model's MLPs, measured before anyone trusts a graph."""
