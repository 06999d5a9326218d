"""Measurements of the method in the demo's world of characters. No part of the product: nothing in the node pack imports this."""
