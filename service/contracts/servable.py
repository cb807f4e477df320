"""What every adapter keeps to be served: bounds that the replica's gate holds each one to and that an import checks."""

MAX_ABSOLUTE = 1e3
"""Of a value in its tensors."""

MAX_SCALE = 64.0
"""Of alpha over rank: finite weights under a huge alpha overflow all the same."""

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 20
MAX_TARGETS = 256
DTYPES = frozenset({"F32", "F16", "BF16"})
