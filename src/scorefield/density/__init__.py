"""Densities of tables and vectors: a mixture, chosen by cross-validation, corrected by a small score network."""
