"""Readers, tokenizers and batches: from a user's files to tensors."""
