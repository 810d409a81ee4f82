"""Model families: one file each, mapping a checkpoint onto the shared transformer."""
