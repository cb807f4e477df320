"""Training files into token ids and loss weights: the preparer, a child process of the agent without torch."""
