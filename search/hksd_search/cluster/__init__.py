"""Nodes of a cluster: the files that bring them up, and the scripts that run on them."""
