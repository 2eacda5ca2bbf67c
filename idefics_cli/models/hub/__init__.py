"""Which models there are, where their files lie, and what the files say."""
