"""The lease holder: claims jobs, keeps their leases, moves their bytes, and drives the two children that do the work.

Never loads torch, so that it stays small, starts at once, and outlives whatever kills the engine.
"""
