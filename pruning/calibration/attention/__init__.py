"""Seeing softmax attention: who attends (`capture`), and what the weights say (`softmax`, `streaming`, `reading`)."""
