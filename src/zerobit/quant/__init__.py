"""How numbers become integers: fake quantisation, ranges, slots."""
