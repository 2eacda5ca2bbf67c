"""From the bytes of any source to an upright RGB image, with limits."""
