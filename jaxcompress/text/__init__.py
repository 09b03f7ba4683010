"""Documents, their words, and finding them again."""
