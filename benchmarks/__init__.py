"""Measurements of the method on the emoji world. No part of the product: nothing in the node pack imports this."""
