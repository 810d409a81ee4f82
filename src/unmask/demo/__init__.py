"""The bundled demo model: its synthetic tasks and its tokenizer."""
