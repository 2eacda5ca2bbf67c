"""Requests of `idefics batch`: the run of captioning, with rows of a file in place of pictures.

`caption/run.py` does the work, as for pictures: journal, resuming, batches, failures, Ctrl-C. This
package has what differs:

- `listing`: the work list, whose rows stay in their file
- `row`, `shapes`, `messages`, `fields`: from a row to a request for the engine
- `reader`: the reader of the executor
- `answers`: the sink, which writes each answer in the shape of its request
- `run`: all of these as a job and a kind of items for `caption_pictures`
"""
