"""What a reload goes by."""
