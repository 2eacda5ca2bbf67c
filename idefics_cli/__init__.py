"""Talk about pictures with the IDEFICS family of open vision-language models."""

__version__ = "0.1.0"
