"""A model's tables kept in a plain file, and predictions from them. The road can be read without it."""
