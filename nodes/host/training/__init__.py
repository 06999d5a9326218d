"""A trainable view of a loaded checkpoint, and the memory that training needs."""
