"""Loading of images: the bytes of any source become an upright RGB image, within limits."""
