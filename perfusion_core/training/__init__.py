"""The training of a concept (§4.4): settings, state, optimizer and loop, over any base model."""
