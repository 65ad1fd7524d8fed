"""The integer network: its frozen description, and numpy twins that compute what each runtime computes."""
