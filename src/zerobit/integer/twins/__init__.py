"""Numpy twins: what a runtime computes, number for number.

A twin is `walk(graph, rule)`: the walk holds everything that is exact in integers, a `Rule` how one runtime rounds.
Each runtime's rule is a file here.
"""
