"""The shared-base multi-LoRA engine: one frozen base model, many resident adapters, a child process of the agent."""
