"""Training a network: losses, optimizers, one step, the epochs; what a search uses as well."""
