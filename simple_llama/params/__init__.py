"""What params.yaml holds: a module for the values of each owner, one that reads the file."""
