"""Every table and figure of the paper as a command: what is trained for it, what is made of it."""
