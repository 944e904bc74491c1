"""Scripts that made what the package ships: the pictures, the pairs and the weights. Not needed to use any of it."""
