"""What every other package may use: errors, types, text, paths and files; standard library only."""
