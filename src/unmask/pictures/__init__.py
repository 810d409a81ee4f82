"""Pictures of a decode: frames computed from its edits, and files that show them."""
