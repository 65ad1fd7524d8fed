"""Devices whose cost is more than a table; every module here with a `DEVICE` is one."""
