"""Gates: whether a unit stays; one file per kind."""
