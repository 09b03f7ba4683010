"""Getting quality back: the one training loop."""
