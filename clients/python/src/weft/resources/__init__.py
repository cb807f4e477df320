"""Weft's own resources and those of the `openai` package that Weft adds to; loaded when they are first used."""
