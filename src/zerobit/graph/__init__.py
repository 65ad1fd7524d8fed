"""What the model is: captured program, frozen description, channel groups."""
