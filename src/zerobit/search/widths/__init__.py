"""Widths: how many bits a channel has; one file per kind."""
