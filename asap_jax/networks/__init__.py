"""Spaces, genotypes, mixtures, and the networks that are built of them."""
