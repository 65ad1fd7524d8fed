"""How bits are chosen."""
