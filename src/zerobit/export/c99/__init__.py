"""C99 libraries for microcontrollers: what is in a folder that `zerobit export --format c` writes, and how it is made.

`layout.py` says where the values of a tensor lie, `steps.py` what the kernels in `sources/` are told, `planner.py`
turns a graph into steps, `arena.py` places buffers, `library.py` writes the folder, `toolchain.py` builds and runs it.
"""
