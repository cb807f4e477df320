"""`make demo`: two tenants train their own adapters over one base model, through the stock `openai` SDK."""

from typing import Any

SETTINGS: dict[str, Any] = {"n_epochs": 6, "batch_size": 8}
"""Hyperparameters for the tiny base. Every other base gets the service's own choice."""
