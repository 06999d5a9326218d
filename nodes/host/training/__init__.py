"""A loaded checkpoint that can be taught, and the memory that this takes."""
