"""Flips of an alias under traffic, and what each answer says about them."""
