"""What a notebook imports, by way of `pghc`."""
