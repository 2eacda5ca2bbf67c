"""Layout of the tables of numbers that Python gives to the compiled step.

Every field is 8 bytes: an integer, an address, or the bits of a float32.
"""

from __future__ import annotations

from enum import IntEnum

FIELD_BYTES = 8
# Counters of different stages are on different cache lines.
COUNTER_BYTES = 64
# Stages of one layer; each has a counter of the pieces that threads have taken.
STAGES = 6


class Format(IntEnum):
    """Format of the weights of a linear layer."""

    NOTHING = 0
    FLOAT32 = 1
    BFLOAT16 = 2
    BFLOAT16_12BIT = 3
    INT8 = 4
    INT4 = 5


class LinearField(IntEnum):
    """Fields of a linear layer.

    WEIGHTS is the first of five addresses; `products.py` says what they are for each format.
    """

    FORMAT = 0
    WIDTH = 1
    OUTPUTS = 2
    WEIGHTS = 3


LINEAR_FIELDS = LinearField.WEIGHTS + 5


class LayerField(IntEnum):
    """Fields of a layer: the weights of its norms, its KV states, and its linear layers."""

    INPUT_NORM = 0
    OUTPUT_NORM = 1
    KEYS = 2
    VALUES = 3
    QUERY = 4
    KEY = QUERY + LINEAR_FIELDS
    VALUE = KEY + LINEAR_FIELDS
    OUTPUT = VALUE + LINEAR_FIELDS
    GATE = OUTPUT + LINEAR_FIELDS
    UP = GATE + LINEAR_FIELDS
    DOWN = UP + LINEAR_FIELDS


LAYER_FIELDS = LayerField.DOWN + LINEAR_FIELDS


class StepField(IntEnum):
    """Fields of a step.

    STATES to LOGITS are the addresses of float32 buffers that all threads share, (rows, width
    of the name). SCRATCH is the memory of the first thread; the next threads' follow.
    IS_PROMPT is 1 if the rows are tokens of one prompt, which share the first row of the KV states.
    HEAD_FROM is the first row whose logits are computed.
    """

    THREADS_BEGUN = 0
    ROWS = 1
    THREADS = 2
    LAYERS = 3
    LAYER_TABLE = 4
    HIDDEN = 5
    INTERMEDIATE = 6
    HEADS = 7
    KV_HEADS = 8
    CAPACITY = 9
    WINDOW = 10
    EPSILON = 11
    SCALING = 12
    STATES = 13
    QUERIES = 14
    NEW_KEYS = 15
    NEW_VALUES = 16
    ATTENDED = 17
    GATES = 18
    UPS = 19
    SUMS = 20
    LOGITS = 21
    POSITIONS = 22
    COSINES = 23
    SINES = 24
    COUNTERS = 25
    FINAL_NORM = 26
    SCRATCH = 27
    SCRATCH_BYTES = 28
    NORMED_AT = 29
    NUMBERS_AT = 30
    SCALES_AT = 31
    SCORES_AT = 32
    TURNED_AT = 33
    IS_PROMPT = 34
    HEAD_FROM = 35
    HEAD = 36


FIELDS = StepField.HEAD + LINEAR_FIELDS
