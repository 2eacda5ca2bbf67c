"""The work list: folders, globs, lists, URLs and prompt templates."""
