"""8-bit training whose rounding happens where a tensor is made (see README.md)."""
