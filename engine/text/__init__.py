"""Text to tokens and back, and how a conversation is written as text."""
