"""Objective and loop."""
