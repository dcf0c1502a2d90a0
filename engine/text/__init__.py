"""Characters: from text to tokens and back, and how a conversation is written."""
