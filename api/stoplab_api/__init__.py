"""REST, command line and the local lab. No torch here."""
