"""The interactive chat: line input, replies, Markdown and previews."""
