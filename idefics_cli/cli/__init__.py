"""The command line. A command parses its arguments, calls one feature, and shows the result."""
