"""Every table and figure of the paper as a command: what is trained for it, and what is made of it."""
