"""What the terminal shows: progress, and numbers with their units."""
