"""What a user might take instead of FMA."""
