"""Forward-mode derivatives of a network: values with tangents, and the rule of each operation."""
