"""`idefics bench`: this tool against plain transformers."""
