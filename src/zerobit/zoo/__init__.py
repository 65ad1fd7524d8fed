"""Small reference networks and the data sets they are trained on.

The zoo stands apart: it imports nothing from the rest of the library, so it can be
replaced by the user's own networks and data without touching a search.
"""
