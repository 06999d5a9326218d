"""Everything that has to be there first: the environment, the host, a browser."""
