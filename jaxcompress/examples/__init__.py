"""Programs that one runs from the command line to see what the library does."""
