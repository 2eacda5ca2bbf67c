"""`idefics doctor`: one module for the description of the machine, one for its check."""
