"""Methods: pairs of gate and width with a schedule; one file per method."""
