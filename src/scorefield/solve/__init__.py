"""Solvers, one file a family, and the two loops that run them."""
