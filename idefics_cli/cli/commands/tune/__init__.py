"""`idefics tune`: a model is trained on the user's own pictures."""
