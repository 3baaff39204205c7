"""The kernels in plain Python, for reading, not for speed: the oracle of the compiled ones, and what runs where they are
not built."""
