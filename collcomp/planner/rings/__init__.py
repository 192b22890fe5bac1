"""Orders of ranks for rings: one that crosses scarce links least, or several side by side."""
