"""Building blocks that decoders share."""
