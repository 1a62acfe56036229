"""What the noise does to positions, what the features are worth, and when they collapse."""
