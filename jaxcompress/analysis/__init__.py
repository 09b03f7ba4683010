"""Looking at what a compression won and lost."""
