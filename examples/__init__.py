"""Programs to read and to run: each is a page of a tutorial."""
