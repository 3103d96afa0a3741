"""The command line's work: what each command does, prints and writes. The road can be read without it."""
