"""Make a decision real: plan, then apply."""
