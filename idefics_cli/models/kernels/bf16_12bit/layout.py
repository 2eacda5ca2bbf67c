"""Layout of weights in 12 bits."""

from __future__ import annotations

# The weights of this many outputs are stored side by side: a register of 64 bytes has 16 lanes of
# float32, and each output is one lane.
LANES = 16
# This many weights along the width are stored together.
GROUP = 8
# Layout of one group of 16 lanes: first a byte for each weight with its sign and fraction, then the
# exponents of 4 bits. Two consecutive weights of each lane are side by side, so that a register
# holds them for all lanes as pairs of bfloat16. Each lane has two 16-bit words of exponents: one
# for the first weights of its four pairs, one for the second weights.
PAIRS = GROUP // 2
PAIR_BYTES = 2 * LANES
EXPONENTS_AT = LANES * GROUP
GROUP_BYTES = EXPONENTS_AT + 4 * LANES
# An exponent is stored as a level from 0 to 15. Level 15 is the exponent of the largest weight of
# the output. Level 0 is an exponent that is smaller by 15, a factor of 2^-15.
LEVELS = 15
SMALLEST = 2.0**-LEVELS
# Many rows are computed in tiles of this number: with two blocks of outputs, the sums of a tile are
# in 24 of 32 registers. The rows of a tile are interleaved: its pairs of a column are side by side.
TILE_ROWS = 12
