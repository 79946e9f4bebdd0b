"""Numbers of the formula that the reference and the Triton kernels share."""

EPSILON = 1e-5
"""What every RMSNorm adds to the mean square before its root."""

LEAST_RATE = 1e-4
"""The slowest that a head forgets, per unit of dt."""
