"""What can run an exported network here, and compare every tensor of it with its twin; a runtime is a file."""
