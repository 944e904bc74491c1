"""Scripts that made what the package ships: pictures, pairs and weights. None is needed to use it."""
