"""What all programs use: command line, files, ranks, random numbers, text and pictures."""
