"""The command line: parse the arguments, call one feature, show the result."""
