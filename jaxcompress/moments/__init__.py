"""What flows along hidden axes, gathered in one pass over data."""
