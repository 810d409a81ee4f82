"""Storage of keys and values: dense, or in pages that requests share."""
