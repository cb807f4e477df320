"""Adapters from elsewhere made ours, and ours merged into whole weights: a process of its own for each of them.

Reads files of strangers: nothing is unpickled, no pattern of theirs is evaluated, sizes are known before anything is
allocated, and the process itself is bounded in memory, and by its parent in time.
"""
