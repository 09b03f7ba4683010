"""What a stored array can be: nodes of a pytree that mean a dense array and hold fewer numbers."""
