"""The protocol: what a study compares, how each of its cells is made, and who judges it. Its results are records."""
