"""What happens around the nodes of a run: what made each output, what is reused, and one run at a time."""
