"""Other engines that run the same checkpoint, each in a process of its own."""
