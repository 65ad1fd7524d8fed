"""Measuring on the machine at hand: the layers of a model in a runtime, and a cost fitted to them."""
