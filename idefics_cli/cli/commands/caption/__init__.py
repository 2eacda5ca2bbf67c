"""`idefics caption`: one caption for each of many images."""
